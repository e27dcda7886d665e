"""The general auxiliary networks: `Head`, also against InfoPro's official code, and `NoHead`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import localprop as lp
from localprop.errors import BadInput
from tests.helpers.cifar_resnets import build_wiring, count_parameters, find_layers
from tests.helpers.points import make_point


def test_heads_with_outputs_of_their_own() -> None:
    head = lp.Head(outputs=128)(make_point(16, 8, 8))
    assert head(torch.zeros(2, 16, 8, 8)).shape == (2, 128)


def test_no_head_returns_the_features_themselves() -> None:
    features = torch.randn(2, 3, 4, 4)
    assert lp.NoHead()(make_point(3, 4, 4))(features) is features


def test_bad_outputs_of_a_head_are_refused() -> None:
    with pytest.raises(BadInput, match="outputs"):
        lp.Head(outputs=-1)


# --- against the official code of InfoPro ---------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "total"), [(2, 28_170), (4, 84_958), (8, 180_102), (16, 388_374)]
)
def test_1c2f_heads(modules: int, total: int) -> None:
    assert count_parameters(build_wiring(32, lp.greedy(), modules).heads) == total


def point_of_width(width: int) -> lp.AttachPoint:
    layer = {16: 0, 32: 6, 64: 11}[width]
    layers = find_layers(32)
    return lp.AttachPoint(layer, 16, layer, layers, layers.shapes[layer], 10)


def shape_of(head: nn.Module) -> list[tuple[int, ...]]:
    """Convolutions as (in, out, stride), linear layers as (in, out)."""
    shapes: list[tuple[int, ...]] = []
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            shapes.append((module.in_channels, module.out_channels, module.stride[0]))
        elif isinstance(module, nn.Linear):
            shapes.append((module.in_features, module.out_features))
    return shapes


@pytest.mark.parametrize(
    ("head", "width", "expected"),
    [
        (lp.Head(), 16, [(16, 32, 2), (32, 128), (128, 10)]),
        (lp.Head(), 32, [(32, 64, 2), (64, 128), (128, 10)]),
        (lp.Head(), 64, [(64, 64, 1), (64, 128), (128, 10)]),
        (lp.Head(0, 1), 16, [(16, 10)]),
        (lp.Head(0, 2), 16, [(16, 128), (128, 10)]),
        (lp.Head(1, 1), 32, [(32, 64, 2), (64, 10)]),
        (lp.Head(1, 3), 64, [(64, 64, 1), (64, 128), (128, 128), (128, 10)]),
        (lp.Head(2, 2), 16, [(16, 32, 2), (32, 32, 1), (32, 128), (128, 10)]),
        (lp.Head(1, 2, widen=2), 16, [(16, 64, 2), (64, 256), (256, 10)]),
        (lp.Head(1, 2, widen=2), 64, [(64, 128, 1), (128, 256), (256, 10)]),
    ],
    ids=str,
)
def test_heads_by_name(head: lp.Head, width: int, expected: list[tuple[int, ...]]) -> None:
    point = point_of_width(width)
    built = head(point)
    assert shape_of(built) == expected
    assert built(torch.zeros(2, *point.features[1:])).shape == (2, 10)
    convs = [module for module in built.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.bias is None and conv.kernel_size == (3, 3) for conv in convs)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in built.modules()) == len(convs)
