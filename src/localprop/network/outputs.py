"""What modules return: a tensor, or tensors in tuples, dicts and the like."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


def list_tensors(output: Any) -> list[Tensor]:
    """The tensors in what a module returns, in the order of torch's pytree.

    Example:
        >>> import torch
        >>> len(list_tensors((torch.zeros(2), None, {"scale": torch.ones(2)})))
        2
    """
    if isinstance(output, Tensor):
        return [output]
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def replace_tensors(output: Any, positions: Collection[int], tensor: Tensor) -> Any:
    """The same structure with a tensor in the place of those at `positions` of `list_tensors`.

    Example:
        >>> import torch
        >>> replace_tensors((torch.zeros(2), "rest"), [0], torch.ones(1))
        (tensor([1.]), 'rest')
    """
    leaves, spec = tree_flatten(output)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for position in positions:
        leaves[places[position]] = tensor
    return tree_unflatten(leaves, spec)
