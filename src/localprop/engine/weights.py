"""What each micro-batch counts in the mean that the task's loss is.

A sum over micro-batches is the mean over the batch, if each part's mean is weighted by its share of
the denominator: of samples, labels that are not ignored, class weights, or elements.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from localprop.rule.local_loss import LossInputs
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch
from localprop.tasks.measure_weights import measure_weights


def weigh_parts(
    wiring: Wiring, batch: Batch, parts: list[Batch], shares: list[float]
) -> list[Tensor | float]:
    """What the task counts in each part of a batch, relative to the part's share of the samples.

    Args:
        wiring: knows the task.
        batch: the whole batch.
        parts: it is split into these.
        shares: the share of each part in the samples.
    """
    if is_fake(batch.inputs):  # a prediction of memory, where no tensor has a value
        return [1.0] * len(parts)
    whole = wiring.task.weight(batch.data)
    weights: list[Tensor | float]
    if whole is None:
        weights = [*_measure_weights(wiring, batch, parts)]
    else:
        weights = [_divide(wiring.task.weight(part.data), whole) for part in parts]
    return [weight / share for weight, share in zip(weights, shares, strict=True)]


def _divide(part: Tensor | float | None, whole: Tensor | float) -> Tensor | float:
    assert part is not None  # it was known for the whole batch
    if isinstance(part, Tensor) and part.device.type != "cpu":
        return part.double() / whole  # stays there: to read it here would wait for the device
    return float(part) / float(whole) if whole else torch.nan


def _measure_weights(wiring: Wiring, batch: Batch, parts: list[Batch]) -> list[float]:
    """Weights of a loss whose mean is not known, found by its gradients at random outputs."""
    layers = wiring.layers.at(batch)
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(layers.output_shape, generator=generator)
    outputs = outputs.to(device=batch.inputs.device, dtype=layers.output_dtype)
    dim = next((d for d, size in enumerate(layers.output_growth) if size), 0)
    start, pieces = 0, []
    for part in parts:
        rows = slice(start, start + part.samples)
        pieces.append((part, (*[slice(None)] * dim, rows)))
        start += part.samples

    def loss(output: Tensor, part: Any) -> Tensor:
        value: Tensor = wiring.task_loss(
            output, nn.Identity(), LossInputs(part.inputs, part.targets, batch=part.data)
        )
        return value

    return measure_weights(loss, outputs, batch, pieces)
