"""The layers of networks that tests build many times, found once.

To find the layers of a network takes longer than to train it for a few steps.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from torch import Tensor, nn

import localprop as lp

_FOUND: dict[Hashable, lp.Layers] = {}


def find_layers_once(model: nn.Module, sample: tuple[Tensor, ...]) -> lp.Layers:
    """The layers of a model, from an earlier one that prints alike and has equal parameters.

    Such models must have one forward: a function in an attribute does not show.
    """
    parameters = tuple(
        (name, p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()
    )
    key = type(model), str(model), parameters, sample[0].shape, sample[0].dtype
    if key not in _FOUND:
        # Without the first model, whose tensors would stay alive.
        _FOUND[key] = replace(lp.layers_of(model, sample), model=nn.Identity())
    return replace(_FOUND[key], model=model)


def cut_once(model: nn.Module, sample: tuple[Tensor, ...], modules: int) -> lp.Partition:
    """A uniform partition of these layers."""
    return lp.Partition.uniform(find_layers_once(model, sample), modules)
