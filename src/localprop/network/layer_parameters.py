"""Which parameters each layer uses, and how deep it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from torch import nn
from torch.autograd.graph import GradientEdge

from localprop.network.autograd_graph import find_leaves, measure_depth


def list_parameters(model: nn.Module, made: Sequence[Sequence[GradientEdge]]) -> list[list[str]]:
    """The names of the parameters that the tensors at each cut depend on, but for what those at
    earlier cuts depend on.
    """
    # A Tensor compares elementwise, so it is looked up by its identity.
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    found, start = [], set[GradientEdge]()
    for edges in made:
        leaves = map(id, find_leaves(edges, start))
        found.append([name_of[leaf] for leaf in leaves if leaf in name_of])
        start.update(edges)
    return found


def measure_depths(made: Sequence[Sequence[GradientEdge]]) -> Iterator[int]:
    """The depth of each layer, from the tensors at earlier cuts to its features."""
    start = set[GradientEdge]()
    for edges in made:
        yield measure_depth(edges[0], start)
        start.update(edges)


def add_unreached(model: nn.Module, layers: list[list[str]]) -> tuple[str, ...]:
    """Add the trainable parameters that the forward has not reached to the layers they fit best.

    Such a parameter may be unused for good, or belong to a branch that this batch did not take;
    then it must be trained like its neighbours.

    Returns:
        Their names.
    """
    reached = {name for own in layers for name in own}
    unreached = [
        name for name, p in model.named_parameters() if p.requires_grad and name not in reached
    ]
    nearest = [_find_nearest(name, layers) for name in unreached]
    for name, layer in zip(unreached, nearest, strict=True):
        layers[layer].append(name)
    return tuple(unreached)


def _find_nearest(name: str, layers: Sequence[Sequence[str]]) -> int:
    """The layer with the parameter whose name begins most like this one; of several the last."""

    def count_common(other: str) -> int:
        pairs = zip(name.split(".")[:-1], other.split(".")[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    common = [max(map(count_common, own), default=0) for own in layers]
    return max(range(len(layers)), key=lambda layer: (common[layer], layer))
