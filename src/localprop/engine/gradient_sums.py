"""Errors that wait for the flow which will carry them on."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from localprop.schedule.schedule import find_contributors
from localprop.schedule.wiring import Wiring


class FlowKey(NamedTuple):
    """Where errors wait: a flow of a segment, in a micro-batch."""

    segment: int
    flow: int
    microbatch: int


class GradientPart(NamedTuple):
    """An error, and who made it: -1 the loss at the segment's end, else the flow of the segment after."""

    maker: int
    tensor: Tensor


class GradientSums:
    """Sums the errors of each place. A sum of three or more is made when all are there, in the order of their makers: then
    it does not depend on the order in which they arrive.

    Args:
        wiring: says how many errors a place will get.
    """

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._waiting: dict[FlowKey, list[GradientPart]] = {}

    def add(self, place: FlowKey, error: GradientPart) -> None:
        """Add an error, which may be written to."""
        waiting = self._waiting.setdefault(place, [])
        if len(waiting) == 1 and len(list(find_contributors(self._wiring, *place))) == 2:
            waiting[0].tensor.add_(error.tensor)
        else:
            waiting.append(error)

    def take(self, place: FlowKey) -> Tensor:
        """The sum of a place, which is empty then."""
        total, *others = (
            error.tensor
            for error in sorted(self._waiting.pop(place), key=lambda error: error.maker)
        )
        for tensor in others:
            total.add_(tensor)
        return total


def pop_gradient(leaf: Tensor) -> Tensor:
    """The gradient of a leaf, which the leaf forgets."""
    error, leaf.grad = leaf.grad, None
    assert error is not None
    return error


def scaled(error: Tensor, scale: float) -> Tensor:
    """The error times a number, in place."""
    return error if scale == 1 else error.mul_(scale)
