"""Attach points: which dimension of features holds the channels.

Of images that are not square, of channels that come last, of sequences and of volumes.
"""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import localprop as lp
from localprop.errors import BadInput
from localprop.rule.auxiliary import AuxBuilder
from tests.helpers.points import make_point_at


@pytest.mark.parametrize("image", [(64, 100), (100, 64), (30, 47), (64, 64)])
def test_heads_on_images_that_are_not_square(image: tuple[int, int]) -> None:
    """32 channels on maps of 32x50: no width of 50 anywhere."""
    model, sample = lp.models.resnet14(), torch.zeros(2, 3, *image)
    heads: list[AuxBuilder] = [
        lp.Head(),
        lp.Head(0, 1),
        lp.MlpSrHead(),
        lp.ConvHead(),
        lp.OneConvHead(),
        lp.SampledLayers(2),
    ]
    for aux in heads:
        for layer in range(6):
            point = make_point_at(model, sample, layer)
            assert point.width() == (16, 16, 16, 32, 32, 64)[layer]
            assert aux(point)(torch.zeros(point.features)).shape == (2, 10)


@pytest.mark.parametrize("image", [(64, 64), (64, 96), (96, 64)])
def test_channels_that_come_last(image: tuple[int, int]) -> None:
    """Swin: 96 channels behind a quarter of the image's sides, then 192 behind an eighth."""
    model = torchvision.models.SwinTransformer(
        [2, 2], 96, [1, 1, 1], [3, 3, 3], [2, 2], num_classes=10
    )
    sample = torch.zeros(2, 3, *image)
    for layer, shape in enumerate(lp.layers_of(model, sample).shapes):
        point = make_point_at(model, sample, layer)
        assert (point.dimension(), point.width(), point.is_map()) == (3, shape[3], False)
        assert shape[3] % 96 == 0
        assert lp.Head()(point)(torch.zeros(shape)).shape == (2, 10)


def _build_conv1d_layers() -> nn.Module:
    layers = [nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*layers)


CHANNELS_FIRST = [
    ((6, 40), _build_conv1d_layers()),
    ((6, 40), nn.Sequential(nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 6, 1))),
    (
        (6, 4, 12, 12),
        nn.Sequential(nn.Conv3d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 6, 3, padding=1)),
    ),
]


@pytest.mark.parametrize(("shape", "body"), CHANNELS_FIRST)
def test_channels_of_sequences_and_volumes_come_first(
    shape: tuple[int, ...], body: nn.Module
) -> None:
    """The gradient of an average over all but the channels is the same at every position."""
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(6 * torch.Size(shape[1:]).numel(), 10))
    point = make_point_at(model, torch.zeros(2, *shape), 0)
    assert (point.width(), point.dimension()) == (6, 1)
    heads: list[AuxBuilder] = [lp.Head(0, 1), lp.MlpSrHead(), lp.PooledHead(), lp.OneConvHead()]
    for aux in heads:
        features = torch.randn(point.features, requires_grad=True)
        aux(point).eval()(features)[:, 0].sum().backward()
        assert features.grad is not None
        gradient = features.grad.flatten(2)
        torch.testing.assert_close(gradient, gradient[:, :, :1].expand_as(gradient))


def test_features_of_five_dimensions_without_conv3d_are_refused() -> None:
    body = nn.Sequential(
        nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    )
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(6 * 8, 10))
    with pytest.raises(BadInput, match="no Conv3d or BatchNorm3d shows"):
        lp.Head()(make_point_at(model, torch.zeros(2, 2, 2, 2, 6), 0))
