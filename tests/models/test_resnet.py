"""CIFAR ResNets: golden sizes, blocks and initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from localprop import models
from localprop.errors import BadInput

FACTORIES = {
    8: models.resnet8,
    14: models.resnet14,
    20: models.resnet20,
    32: models.resnet32,
    44: models.resnet44,
    56: models.resnet56,
    110: models.resnet110,
}


@pytest.mark.parametrize(
    ("depth", "count", "mmacs"), [(32, 466_906, 69.12), (110, 1_730_714, 253.15)]
)
def test_parameters_and_macs_are_the_published_ones(depth: int, count: int, mmacs: float) -> None:
    with torch.device("meta"):
        model, images = models.cifar_resnet(depth), torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert counter.get_total_flops() / 2e6 == pytest.approx(mmacs, abs=0.005)


@pytest.mark.parametrize("depth", FACTORIES)
def test_factories_have_their_depth(depth: int) -> None:
    model = FACTORIES[depth](num_classes=7, in_chans=1)
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    shortcuts = [m for m in weighted if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(weighted) - len(shortcuts) == depth
    assert len(model.blocks) == (depth - 2) // 2
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_names_and_strides() -> None:
    model = models.resnet8()
    names = [name for name, _ in model.named_children()]
    assert names == ["conv", "bn", "relu", "blocks", "pool", "fc"]
    shapes = []
    x = model.relu(model.bn(model.conv(torch.zeros(1, 3, 32, 32))))
    for block in model.blocks:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_a_block_by_hand() -> None:
    block = models.BasicBlock(1, 1).eval()
    nn.init.dirac_(block.conv1.weight)
    nn.init.dirac_(block.conv2.weight, groups=1)
    # relu(x - 3 relu(x)) is 0: a negative x is cut off, and a positive one becomes -2 x.
    block.conv2.weight.data.mul_(-3)
    x = torch.tensor([[[[1.0, -1.0], [2.0, 0.0]]]])
    assert torch.equal(block(x.clone()), torch.zeros_like(x))
    # relu(x + 3 relu(x)) is 4 x for a positive x.
    block.conv2.weight.data.mul_(-1)
    expected = torch.tensor([[[[4.0, 0.0], [8.0, 0.0]]]])
    torch.testing.assert_close(block(x.clone()), expected, rtol=1e-4, atol=0)


def test_convolutions_are_drawn_with_fan_out() -> None:
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(64, 128, 3), nn.Linear(4, 4)
    assert conv.bias is not None
    bias, weight = conv.bias.clone(), linear.weight.clone()
    models.init_convs(nn.Sequential(conv, linear))
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert conv.weight.mean().item() == pytest.approx(0, abs=0.001)
    assert torch.equal(conv.bias, bias)
    assert torch.equal(linear.weight, weight)


@pytest.mark.parametrize(
    ("depth", "advice"), [(2, "take 8 or 14"), (18, "take 14 or 20"), (50 + 1, "50 or 56")]
)
def test_depths_that_do_not_exist_are_refused(depth: int, advice: str) -> None:
    with pytest.raises(BadInput, match=advice):
        models.cifar_resnet(depth)


def test_all_problems_of_a_resnet_are_reported_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        models.cifar_resnet(9, num_classes=0, in_chans=-1)
    assert len(caught.value.problems) == 3
