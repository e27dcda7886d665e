"""The identity of micro-batches: the weighted losses of parts are the loss of the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import localprop as lp

Pair = tuple[None, Tensor]


def assert_parts_sum_to_the_whole(
    task: lp.Task, outputs: Tensor, targets: Tensor, reference: Tensor, sizes: Sequence[int]
) -> None:
    """Compare weighted losses of parts, and their gradients, with a reference of the whole.

    Args:
        task: a task whose weights are known.
        outputs: the outputs of the whole batch, a leaf of float64.
        targets: its targets.
        reference: the loss of the whole batch, computed from `outputs` by torch itself.
        sizes: the numbers of samples of the parts.
    """
    (wanted,) = torch.autograd.grad(reference, outputs)
    whole = weight_of(task, (None, targets))
    losses, gradients = [], []
    pieces = (torch.split(tensor, list(sizes)) for tensor in (outputs, targets))
    for output, part in zip(*pieces, strict=True):
        share = weight_of(task, (None, part)) / whole
        leaf = output.detach().requires_grad_()
        loss = task.loss(leaf, (None, part))
        (gradient,) = torch.autograd.grad(loss, leaf)
        gradients.append(share * gradient)
        if share:  # the mean over no labels at all is NaN, its gradient 0
            losses.append(share * loss)
    torch.testing.assert_close(sum(losses), reference, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.cat(gradients), wanted, rtol=1e-12, atol=1e-14)


def weight_of(task: lp.Task, batch: Any) -> float:
    """The weight of a batch as a number."""
    weight = task.weight(batch)
    assert weight is not None
    return float(weight)


def make_outputs(*shape: int) -> Tensor:
    """Random outputs of float64 that a gradient is asked for."""
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)
