"""Attach points, and what is built at them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import localprop as lp
from localprop.rule.auxiliary import AuxBuilder
from tests.helpers.layers import find_layers_once


def make_point(
    *features: int,
    image: tuple[int, ...] = (3, 8, 8),
    module: int = 0,
    modules: int = 2,
    outputs: tuple[int, ...] = (10,),
    normalization: lp.Normalization | None = None,
) -> lp.AttachPoint:
    """The end of a module in a network that is otherwise made up.

    Args:
        features: the shape of the features, without the batch dimension.
        image: the shape of an input.
        module: the number of the module.
        modules: the number of modules.
        outputs: the shape of an output of the network.
        normalization: how pixels became inputs.
    """
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    shape = torch.Size((2, *features))
    made_up = {
        "shapes": (shape, shape),
        "growths": ((1, *[0] * len(features)),) * 2,
        "channels": (1 if len(features) == 3 else len(features),) * 2,
        "input_shape": torch.Size((2, *image)),
        "output_shape": torch.Size((2, *outputs)),
        "output_channel": len(outputs),
    }
    layers = lp.Layers(**{**vars(find_layers_once(model, (torch.zeros(2, 2),))), **made_up})
    return lp.AttachPoint(
        module, modules, 0, layers, shape, outputs[-1], normalization=normalization
    )


def make_point_at(model: nn.Module, sample: Tensor, layer: int) -> lp.AttachPoint:
    """The end of a layer of a real network in which each layer is a module."""
    layers = find_layers_once(model, (sample,))
    shape = layers.shapes[layer]
    return lp.AttachPoint(layer, len(layers), layer, layers, shape, layers.output_shape[-1])


def build_head(aux: AuxBuilder, point: lp.AttachPoint) -> nn.Sequential:
    """An auxiliary network that is an nn.Sequential."""
    head = aux(point)
    assert isinstance(head, nn.Sequential)
    return head


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def list_leaf_types(module: nn.Module) -> list[str]:
    """The class names of the modules that have no children, in order."""
    return [type(child).__name__ for child in module.modules() if not list(child.children())]


def list_convs(module: nn.Module) -> list[nn.Conv2d]:
    return [child for child in module.modules() if isinstance(child, nn.Conv2d)]
