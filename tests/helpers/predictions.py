"""Learners whose predicted memory is compared with the measured one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import localprop as lp
from localprop.report.costs import measure_peak_bytes
from localprop.tasks.batch import Batch

CLASSES, WIDTH, STEPS, SAMPLES = 3, 24, 4, 12


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """With momentum, which is state."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def make_batch(*shape: int) -> Batch:
    """Inputs of a shape, and classes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, *shape, generator=generator)
    return Batch.of((inputs, torch.randint(CLASSES, (SAMPLES,), generator=generator)))


def learn(model: nn.Module, batch: Batch, **arguments: Any) -> lp.Learner:
    """A learner that trains end-to-end, with one module unless more are asked for."""
    options: dict[str, Any] = {"modules": 1, "optimizer": sgd, **arguments}
    return lp.Learner(model, lp.end_to_end(), sample=batch.data, **options)


def compare(model: nn.Module, batch: Batch, **arguments: Any) -> None:
    """Make a learner, and compare its predictions."""
    compare_learner(learn(model, batch, **arguments), batch)


def compare_learner(learner: lp.Learner, batch: Batch) -> None:
    """The predictions before and after the first step equal the measurement to 1%."""
    predicted = learner.memory(batch.data).peak_bytes
    learner.step(batch.data)
    assert learner.memory(batch.data).peak_bytes == predicted
    # Of a second step, since the first one makes what models keep from step to step.
    assert measure_peak_bytes(learner, batch) == pytest.approx(predicted, rel=0.01)
    assert learner.flops(batch.data) > 0
    assert "Predicted peak" in learner.explain()
