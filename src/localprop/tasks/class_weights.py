"""The weights of classes, as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from localprop.errors import BadInput


def list_weights(name: str, weights: Sequence[float] | Tensor) -> tuple[float, ...]:
    """The weights as numbers, which compare, print and move between devices.

    Args:
        name: of the argument, for messages.
        weights: one number for each class.

    Raises:
        BadInput: they have more dimensions than one, or no values.

    Example:
        >>> list_weights("pos_weight", torch.tensor([1.0, 2.0]))
        (1.0, 2.0)
    """
    given = torch.as_tensor(weights)
    if given.ndim != 1 or given.is_complex() or given.is_meta or given.is_sparse:
        raise BadInput(
            f"{name} is a {given.dtype} of shape {tuple(given.shape)} on {given.device}, but must "
            "be one number for each class."
        )
    return tuple(map(float, weights))


def find_weight_problems(name: str, weights: Iterable[float]) -> Iterator[str]:
    """What is wrong with the first such weight, as one sentence."""
    odd = [weight for weight in weights if not 0 <= weight < float("inf")]
    if odd:
        yield f"{name} has {odd[0]}, but weights must be 0 or more, and finite."
