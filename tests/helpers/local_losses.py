"""A local loss by itself, and learners whose rules have one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import localprop as lp
from localprop.rule.losses import LossBuilder
from tests.helpers.layers import cut_once


def make_loss_inputs(
    *features: int, samples: int = 7, classes: int = 3
) -> tuple[Tensor, lp.LossInputs]:
    """Features, and images in 0..1 with labels, in float64."""
    torch.manual_seed(0)
    images = torch.rand(samples, 3, 8, 8, dtype=torch.float64)
    inputs = lp.LossInputs(images, torch.arange(samples) % classes)
    return torch.randn(samples, *features, dtype=torch.float64), inputs


def build_loss(loss: LossBuilder, point: lp.AttachPoint) -> lp.LocalLoss:
    """A loss in float64."""
    torch.manual_seed(1)
    return loss(point).double()


def compute_loss(
    loss: nn.Module, features: Tensor, inputs: lp.LossInputs, aux: nn.Module | None = None
) -> float:
    """The value of a loss, by default without an auxiliary network."""
    value: Tensor = loss(features, aux or nn.Identity(), inputs)
    return value.item()


def make_images() -> tuple[Tensor, Tensor]:
    """Eight images of one channel in 0..1, of four classes."""
    torch.manual_seed(0)
    return torch.rand(8, 1, 8, 8), torch.arange(8) % 4


def make_learner(rule: lp.Rule, precision: str = "fp32") -> lp.Learner:
    """A learner of a ResNet-8 in four modules for `make_images`."""
    torch.manual_seed(0)
    model = lp.models.resnet8(num_classes=4, in_chans=1)
    return lp.Learner(
        model,
        rule,
        partition=cut_once(model, make_images(), 4),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.02),
        sample=make_images(),
        normalization=lp.Normalization(),
        precision=precision,
    )


def assert_trains_as_predicted(rule: lp.Rule) -> None:
    """A few steps lower all losses, and the memory of a step is predicted without an exception."""
    learner, images = make_learner(rule), make_images()
    assert learner.memory(images).peak_bytes > 0
    first = learner.step(images)
    for _ in range(4):
        last = learner.step(images)
    assert all(after < before for before, after in zip(first, last, strict=True))
