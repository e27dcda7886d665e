"""Feature reconstruction: maps, against one connected graph in float64, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.errors import BadInput
from tests.helpers.connected import Connected, Losses
from tests.helpers.connected_losses import assert_trains_like, local_loss, task_loss
from tests.helpers.points import list_convs, make_point_at
from tests.helpers.reference import NETWORKS, batches_of, network, sgd


def decode_map(decoder: nn.Module, features: Tensor, size: torch.Size) -> Tensor:
    """A decoder of maps, written out."""
    narrow, norm, _, wide = decoder.get_submodule("body").children()
    assert isinstance(narrow, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(wide, nn.Conv2d)
    h = functional.interpolate(features, size=size, mode="bilinear", align_corners=True)
    h = functional.conv2d(h, narrow.weight, narrow.bias, padding=1)
    variance = h.var((0, 2, 3), keepdim=True, unbiased=False)
    h = (h - h.mean((0, 2, 3), keepdim=True)) / torch.sqrt(variance + norm.eps)
    h = functional.relu(h * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))
    return functional.conv2d(h, wide.weight, wide.bias, padding=1)


def test_reconstruction_of_maps() -> None:
    """The first module decodes the image, others larger and narrower maps where they halve them."""

    def losses(connected: Connected) -> Losses:
        values = {3: task_loss(connected)}
        for k in range(3):
            target, h = connected.outputs[k].detach(), connected.outputs[k + 1]
            decoder = connected.loss(k).get_submodule("parts.0.decoder")
            error = (decode_map(decoder, h, target.shape[2:]) - target).square().mean()
            values[k] = 3 * error + 0.5 * local_loss(connected, k)
        return values

    model, batches = network("resnet14")
    rule = lp.pathak(reconstruction=3.0, task=0.5)
    learner = lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batches[0])
    connected = Connected(learner, NETWORKS["resnet14"][1])
    assert_trains_like(connected, learner, batches, losses)


class ChannelsLast(nn.Module):
    """A convolution of maps (N, H, W, C)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x.movedim(3, 1))
        return out.movedim(1, 3)


class ChannelsLastNetwork(nn.Module):
    """Maps (N, H, W, C) as in Swin: a module halves the map and doubles the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.layers = nn.Sequential(
            ChannelsLast(nn.Conv2d(5, 6, 3, padding=1)),
            ChannelsLast(nn.Conv2d(6, 12, 2, stride=2)),
        )
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(self.stem(x).movedim(1, 3)).mean((1, 2)))
        return logits


def test_reconstruction_of_maps_with_channels_last() -> None:
    torch.manual_seed(0)
    model = ChannelsLastNetwork().double()
    (batch,) = batches_of((3, 8, 8), 10, count=1)
    learner = lp.Learner(model, lp.lopt(), modules=2, optimizer=sgd, sample=batch)
    losses = [learner.step(batch)[0].item() for _ in range(10)]
    assert losses[-1] < losses[0]


class Patches(nn.Module):
    """Maps to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out.flatten(2).mT


def test_modules_that_change_the_type_of_features_are_refused() -> None:
    stem = nn.Conv2d(3, 3, 3, padding=1)
    classifier = nn.Linear(128, 10)
    model = nn.Sequential(stem, Patches(), nn.Linear(8, 8), nn.Flatten(), classifier).double()
    (batch,) = batches_of((3, 8, 8), 10, count=1)
    reason = r"module 1 turns .* into .*, features of another type: cut elsewhere"
    with pytest.raises(lp.BadInput, match=reason):
        lp.Learner(model, lp.lopt(), modules=4, optimizer=sgd, sample=batch)


def test_bad_fields_are_all_named() -> None:
    with pytest.raises(lp.BadInput, match=r"(?s)weight=0.*hidden=-1"):
        lp.FeatureReconstruction(weight=0, hidden=-1)


# --- which shapes are decoded ---------------------------------------------------------------------


def test_features_that_are_decoded_on_images_that_are_not_square() -> None:
    """From 32 channels on maps of 32x50 to 16 on maps of 64x100."""
    point = make_point_at(lp.models.resnet14(), torch.zeros(2, 3, 64, 100), 3)
    convs = list_convs(lp.FeatureReconstruction()(replace(point, start=3)))
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == [(32, 8), (8, 16)]


def test_sequences_whose_channels_come_first_are_not_decoded() -> None:
    layers = [nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.ReLU()) for _ in range(3)]
    model = nn.Sequential(nn.Sequential(*layers), nn.Flatten(), nn.Linear(240, 10))
    with pytest.raises(BadInput, match="channels come first"):
        lp.FeatureReconstruction()(make_point_at(model, torch.zeros(2, 6, 40), 1))
