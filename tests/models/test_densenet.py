"""DenseNet against torchvision's with the same weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet

import localprop as lp
from localprop.models import DenseNetBC
from tests.helpers.modules import count_parameters


def list_weights(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def build_torchvision_densenet(layers: int, growth: int) -> nn.Module:
    """Build torchvision's DenseNet with the stem for images of 32x32 pixels."""
    densenet = DenseNet(
        growth_rate=growth,
        block_config=(layers,) * 3,
        num_init_features=2 * growth,
        num_classes=10,
    )
    densenet.features.conv0 = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        setattr(densenet.features, name, nn.Identity())
    model: nn.Module = densenet
    return model


def test_densenet_has_torchvision_s_parameters() -> None:
    with torch.device("meta"):
        ours, theirs = lp.models.densenet_bc_100_12(), build_torchvision_densenet(16, 12)
    assert [w.shape for w in list_weights(ours)] == [w.shape for w in list_weights(theirs)]
    assert count_parameters(ours) == count_parameters(theirs)


def test_densenet_computes_what_torchvision_s_does() -> None:
    ours, theirs = DenseNetBC(3, growth=4).double(), build_torchvision_densenet(3, 4).double()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), list_weights(ours), strict=True)))
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images))
    torch.testing.assert_close(list_weights(ours), list_weights(theirs))  # running statistics
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_a_transition_belongs_to_the_layer_after_it() -> None:
    layers = lp.layers_of(DenseNetBC(2, growth=4), torch.zeros(2, 3, 8, 8))
    assert [tuple(shape[1:]) for shape in layers.shapes] == [
        *[(12, 8, 8), (16, 8, 8)],
        *[(12, 4, 4), (16, 4, 4)],
        *[(12, 2, 2), (16, 2, 2)],
    ]
