"""torchvision's ResNets for small images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

import localprop as lp
from localprop.errors import BadInput
from tests.helpers.modules import find_module


def test_small_images_keep_their_side_in_torchvision_s_networks() -> None:
    model = lp.models.small_resnet("resnet18", in_chans=1)
    layers = lp.layers_of(model, torch.zeros(2, 1, 8, 8))
    assert [tuple(shape[1:]) for shape in layers.shapes[::2]] == [
        (64, 8, 8),
        (64, 8, 8),
        (128, 4, 4),
        (256, 2, 2),
        (512, 1, 1),
    ]


def test_the_larger_stem_is_torchvision_s_without_the_pool() -> None:
    ours = lp.models.create_model("resnet18_cifar:kernel=7", 10, (3, 64, 64))
    conv = find_module(ours, "conv1", nn.Conv2d)
    assert repr(conv) == repr(resnet18().conv1)
    assert repr(ours.get_submodule("maxpool")) == "Identity()"
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (7 * 7 * 64)), rel=0.05)
    shapes = lp.layers_of(ours, torch.zeros(2, 3, 64, 64)).shapes
    assert [shape[2] for shape in shapes] == [32, 32, 32, 16, 16, 8, 8, 4, 4]
    with pytest.raises(BadInput, match="kernel=5 is unknown: choose 3"):
        lp.models.small_resnet("resnet18", kernel=5)
