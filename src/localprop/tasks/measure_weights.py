"""The weights of parts of a batch, where a task does not know them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from localprop.errors import BadInput

# Gradients of a mean agree up to rounding. Half the digits of float32 leave room for it, but not
# for a loss that compares samples.
TOLERANCE = 1e-3
Loss = Callable[[Tensor, Any], Tensor]


def measure_weights(
    loss: Loss, outputs: Tensor, batch: Any, parts: Sequence[tuple[Any, Any]]
) -> list[float]:
    """Measure how much each part of a batch adds to the loss of the whole.

    If the loss is a mean over what the parts hold, its gradient with respect to the outputs of a
    part is the gradient of that part's own loss, times the part's weight. The weights solve that by
    least squares, and what remains must be rounding.

    Args:
        loss: a function (output, batch).
        outputs: outputs for the whole batch. Random values do, where the loss takes any.
        batch: the whole batch.
        parts: parts of the batch, each with the index that gives its outputs, a slice or several.

    Returns:
        For each part, by what its loss is multiplied in the sum that is the loss of the batch.

    Raises:
        BadInput: no weights make the parts' losses add up to the whole.

    Example:
        >>> def loss(output, targets):
        ...     return (output - targets).square().mean()
        >>> x, y = torch.randn(4, 2), torch.randn(4, 2)
        >>> weights = measure_weights(loss, x, y, [(y[:3], slice(3)), (y[3:], slice(3, 4))])
        >>> [round(weight, 4) for weight in weights]
        [0.75, 0.25]
    """
    whole = _find_gradient(loss, outputs, batch)
    weights = []
    remains = whole.clone()
    for part, index in parts:
        gradient = _find_gradient(loss, outputs[index], part)
        length = gradient.square().sum()
        weight = (whole[index] * gradient).sum() / length if length else length
        remains[index] -= weight * gradient
        weights.append(float(weight))
    size, left = float(whole.norm()), float(remains.norm())
    tolerance = max(TOLERANCE, 4 * torch.finfo(whole.dtype).eps)
    if not left <= tolerance * size:  # NaN is refused, too
        raise BadInput(
            f"This loss cannot be split into {len(parts)} micro-batches: {left / (size or 1):.0%} "
            "of its gradient is in no sum of their losses, so it is no mean over samples. Use "
            "microbatches=1; or, for a mean whose denominator is known, give weight=... to "
            "lp.task()."
        )
    return weights


def _find_gradient(loss: Loss, outputs: Tensor, batch: Any) -> Tensor:
    leaf = outputs.detach().clone().requires_grad_()
    devices = [leaf.device] if leaf.device.type == "cuda" else []
    with torch.enable_grad(), torch.random.fork_rng(devices):
        value = loss(leaf, batch)
        if not value.requires_grad:  # no label counts, and the loss is a constant
            return torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient
