"""Attach points: which dimension of features holds the channels.

Of images that are not square, of channels that come last, of sequences and of volumes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

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


def test_features_of_five_dimensions_with_channels_last() -> None:
    body = nn.Sequential(
        nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    )
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(6 * 8, 10))
    assert make_point_at(model, torch.zeros(2, 2, 2, 2, 6), 0).dimension() == 4


class SqueezeExcite(nn.Module):
    """Scales the channels of (N, C, T) by what linear layers make of their averages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv1d(6, 6, 3, padding=1), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        scaled: Tensor = x * self.linear(x.mean(2))[:, :, None].sigmoid()
        return scaled


AFTER_CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "group norm": lambda: nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.GroupNorm(2, 6)),
    "instance norm": lambda: nn.Sequential(
        nn.Conv1d(6, 6, 3, padding=1), nn.InstanceNorm1d(6, affine=True)
    ),
    "prelu": lambda: nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.PReLU(6)),
    "squeeze and excite": SqueezeExcite,
}


@pytest.mark.parametrize("length", [6, 40])
@pytest.mark.parametrize("name", AFTER_CONVOLUTIONS)
def test_channels_are_those_of_the_convolution(name: str, length: int) -> None:
    """Whatever stands behind it, and where positions are as many as channels."""
    blocks = [AFTER_CONVOLUTIONS[name]() for _ in range(2)]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(6 * length, 10))
    for layer in range(2):
        assert make_point_at(model, torch.zeros(2, 6, length), layer).dimension() == 1


class TokenConv(nn.Module):
    """Tokens (N, T, C) that end with a convolution over time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(6, 6), nn.Conv1d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(self.linear(x).transpose(1, 2)).transpose(1, 2)
        return output


def test_channels_of_tokens_that_end_with_a_convolution() -> None:
    model = nn.Sequential(TokenConv(), TokenConv(), nn.Linear(6, 3))
    for layer in range(2):
        assert make_point_at(model, torch.zeros(2, 6, 6), layer).dimension() == 2


@pytest.mark.parametrize("length", [2, 5])
def test_samples_that_are_not_first_are_refused(length: int) -> None:
    """Also where there are as many positions as samples."""

    class Sequences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(6, 2, 8) for _ in range(2))
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1)
            for layer in self.layers:
                x = layer(x)
            output: Tensor = self.head(x.mean(0))
            return output

    with pytest.raises(BadInput, match=r"layers\.0.*dimension 0 counts the samples.*batch_first"):
        lp.Head()(make_point_at(Sequences(), torch.zeros(2, length, 6), 0))
