"""VGG networks: the order inside their layers, initial weights, and torchvision's VGG-13."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.models import vgg13_bn

import localprop as lp
from localprop.errors import BadInput
from localprop.models import vgg8b, vgg13
from tests.helpers.modules import find_module


def test_the_order_inside_the_layers_of_vgg8b() -> None:
    layers = vgg8b(dropout=0.2, leaky=True).layers
    classes = [[type(module).__name__ for module in layer.children()] for layer in layers]
    plain, drop = ["Conv2d", "BatchNorm2d", "LeakyReLU"], ["Dropout2d"]
    pooled = [*drop, "MaxPool2d", *plain]
    hidden = [*drop, "MaxPool2d", "Flatten", "Linear", "BatchNorm1d", "LeakyReLU"]
    assert classes == [
        plain,
        drop + plain,
        pooled,
        drop + plain,
        pooled,
        pooled,
        hidden,
        ["Dropout", "Linear"],
    ]


def test_local_losses_of_vgg8b_see_features_before_the_pool() -> None:
    layers = lp.layers_of(vgg8b(input_shape=(1, 16, 16)), torch.zeros(2, 1, 16, 16))
    sides = [shape[2] for shape in layers.shapes[:6]]
    assert sides == [16, 16, 8, 8, 4, 2]


def test_names_of_vgg8b_do_not_depend_on_dropout() -> None:
    with torch.device("meta"):
        assert list(vgg8b().state_dict()) == list(vgg8b(dropout=0.2).state_dict())


@pytest.mark.parametrize(("side", "kernel", "stride"), [(64, 3, 1), (65, 7, 2)])
def test_large_images_enter_by_a_strided_convolution(side: int, kernel: int, stride: int) -> None:
    with torch.device("meta"):
        model, images = vgg8b(input_shape=(3, side, side)), torch.zeros(2, 3, side, side)
        first = find_module(model, "layers.0.conv", nn.Conv2d)
        assert (first.kernel_size[0], first.stride[0]) == (kernel, stride)
        assert model(images).shape == (2, 10)


def test_initial_weights_of_vgg() -> None:
    assert vgg8b(zero_output=True).get_parameter("layers.7.linear.weight").abs().max() == 0
    assert vgg8b().get_parameter("layers.7.linear.weight").abs().max() > 0
    assert len(vgg8b().layers) == 8  # so that 7 is the last one
    model = vgg13(10, hidden=64)
    hidden = model.get_parameter("readout.hidden.linear.weight")
    assert hidden.std().item() == pytest.approx(0.01, rel=0.01)
    conv = model.get_parameter("layers.3.conv.weight")
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.01)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert not any(bias.any() for bias in biases)


def test_vgg13_computes_what_torchvision_s_does() -> None:
    ours = vgg13(10, hidden=16).eval()
    with torch.device("meta"):
        theirs = vgg13_bn(num_classes=10).eval()
        theirs.classifier = nn.Sequential(
            nn.Linear(49 * 512, 16),
            nn.ReLU(),
            nn.Linear(16, 16),
            nn.ReLU(),
            nn.Linear(16, 10),
        )
    weights = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    theirs.load_state_dict(weights, assign=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_refusals_of_vgg() -> None:
    with pytest.raises(BadInput) as caught:
        vgg8b(0, input_shape=(0, 8, 8), feat_mult=0, dropout=1.0)
    assert len(caught.value.problems) == 5
    assert "16 pixels" in caught.value.problems[-1]
    with pytest.raises(BadInput, match="dropout"):
        vgg13(dropout=-0.1)
