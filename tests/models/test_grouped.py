"""ResNets of grouped convolutions: which channels mix, what they cost, and their classifier."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import localprop as lp
from localprop.errors import BadInput
from localprop.models import ConvClassifier, grouped_resnet
from tests.helpers.modules import find_module


def list_conv_sizes(module: nn.Module) -> dict[str, int]:
    return {
        name: conv.weight.numel()
        for name, conv in module.named_modules()
        if isinstance(conv, nn.Conv2d)
    }


def test_groups_mix_only_at_the_start_of_a_module() -> None:
    network = grouped_resnet(14, groups=2, ends=(2, 6)).eval()
    x = network.layers[0](torch.randn(1, 3, 16, 16)).detach().requires_grad_()
    mixes = []
    for layer in network.layers[1:-1]:
        out = layer(x)
        group_0 = out[:, : out.shape[1] // 2].sum()
        (gradient,) = torch.autograd.grad(group_0, x, retain_graph=True)
        mixes.append(bool(gradient[:, x.shape[1] // 2 :].any()))
        x = out
    assert mixes == [False, False, True, False, False, False]


def test_grouped_resnet_has_half_the_weights_of_the_plain_one() -> None:
    """Convolutions of two groups have half the weights.

    Exceptions are the stem and the first convolution after the end of a module.
    """
    plain, grouped = lp.models.resnet32(), grouped_resnet(32, groups=2, ends=(7, 15))
    plain_sizes = list_conv_sizes(plain.blocks)
    expected = [size // (1 if name == "7.conv1" else 2) for name, size in plain_sizes.items()]
    assert list(list_conv_sizes(grouped.layers[1:-1]).values()) == expected
    assert grouped.get_parameter("layers.0.0.weight").shape == (16, 3, 3, 3)
    classifier = find_module(grouped, "layers.16", ConvClassifier)
    assert grouped.layers[-1] is classifier
    assert classifier.conv.weight.shape == (128, 64, 3, 3)


@pytest.mark.parametrize(("modules", "groups"), [(4, [2, 2]), (8, [1, 2]), (16, [1, 1])])
def test_the_shortcut_of_a_modules_first_block_is_not_grouped(
    modules: int, groups: list[int]
) -> None:
    """ResNet-32 has shortcuts with weights in layers 6 and 11; modules of 2 layers start at 6."""
    ends = range(16 // modules - 1, 16, 16 // modules)
    network = grouped_resnet(32, groups=2, ends=ends)
    shortcuts = [find_module(network, f"layers.{i}.shortcut.0", nn.Conv2d) for i in (6, 11)]
    assert [conv.groups for conv in shortcuts] == groups


@pytest.mark.parametrize(("widen", "hidden"), [(1, 128), (2, 256)])
def test_the_hidden_layer_of_the_classifier_widens_with_the_network(
    widen: int, hidden: int
) -> None:
    network = grouped_resnet(8, ends=(1, 3), widen=widen)
    assert find_module(network, "layers.4", ConvClassifier).hidden.out_features == hidden


def test_the_classifier_of_grouped_networks_by_hand() -> None:
    head = ConvClassifier(4, 3, hidden=5).double()
    x = torch.randn(6, 4, 7, 7, dtype=torch.float64)
    maps = functional.conv2d(x, head.conv.weight, stride=2, padding=1)
    mean = maps.mean((0, 2, 3), keepdim=True)
    variance = maps.var((0, 2, 3), keepdim=True, correction=0)
    maps = (maps - mean) / (variance + 1e-5).sqrt()
    hidden = maps.relu().mean((2, 3)) @ head.hidden.weight.T + head.hidden.bias
    torch.testing.assert_close(head(x), hidden.relu() @ head.fc.weight.T + head.fc.bias)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 33}, "take 32 or 38"),
        ({"groups": 3}, "take one of 1, 2, 4, 8, 16"),
        ({"ends": (7, 7)}, "must increase"),
        ({"ends": (16,)}, r"0 \(the stem\) and 15"),
        ({"groups": 0, "widen": 0}, "groups is 0(.|\n)*widen is 0"),
    ],
)
def test_refusals_of_grouped_networks(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        grouped_resnet(**options)
