"""Gradients of a segment that several flows train: summed flow by flow, so that no sum depends on which flow came first.

::

    loss 0   micro-batches  0  1  2 ──► .grad      ┐
    loss 1   micro-batches  0  1  2 ──► set aside  ┴─► their sum, before the segment's step

On several ranks the errors of a backward link come when they come; here as well as there the sum is the same, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from localprop.schedule.flows import Flow

SetAside = dict[tuple[int, int], list[Tensor | None]]  # (segment, flow) -> its gradients


class FlowGradients:
    """Sums the gradients of each later flow of a segment by itself.

    Args:
        parameters: of each segment.
        flows: of all segments.
        parts: micro-batches in all replicas; one sum of two gradients is the same in either order.
    """

    def __init__(
        self,
        parameters: Mapping[int, list[Tensor]],
        flows: tuple[tuple[Flow, ...], ...],
        parts: int,
    ) -> None:
        self.parameters = parameters
        training = {s: [f for f, flow in enumerate(flows[s]) if flow.train] for s in parameters}
        self._later = {
            (s, f) for s, own in training.items() if len(own) * parts > 2 for f in own[1:]
        }

    @contextmanager
    def of(self, segment: int, flow: int, aside: SetAside) -> Iterator[None]:
        """For the time of a backward, `.grad` holds the gradients of its flow."""
        if (segment, flow) not in self._later:
            yield
            return
        parameters = self.parameters[segment]
        kept = [parameter.grad for parameter in parameters]
        _put(parameters, aside.pop((segment, flow), [None] * len(parameters)))
        yield
        aside[segment, flow] = [parameter.grad for parameter in parameters]
        _put(parameters, kept)

    @staticmethod
    def aside(segment: int, aside: SetAside) -> list[Tensor]:
        """What was set aside of a segment, in the order of its flows."""
        places = sorted(place for place in aside if place[0] == segment)
        return [gradient for place in places for gradient in aside[place] if gradient is not None]

    def add(self, segment: int, aside: SetAside) -> None:
        """Add what was set aside of a segment, in the order of its flows."""
        for place in sorted(place for place in aside if place[0] == segment):
            for parameter, gradient in zip(self.parameters[segment], aside.pop(place), strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient
                elif gradient is not None:
                    parameter.grad.add_(gradient)


def _put(parameters: list[Tensor], gradients: list[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
