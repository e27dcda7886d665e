"""What carries tensors between ranks, as an engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from localprop.rule.losses import Batch
from localprop.schedule.schedule import Action, Schedule


class Communicator(Protocol):
    """What carries tensors between ranks. Messages of one kind between two ranks arrive in the order of their sending."""

    allowed: int  # messages of one kind to one rank that may be under way at once

    def begin(
        self,
        number: int,
        batch: Batch,
        parts: Sequence[Batch],
        rank_schedule: Schedule,
        *,
        training: bool,
    ) -> None:
        """Begin a step: agree with the rank before on its number and batch."""

    def send(self, action: Action, tensor: Tensor, samples: int) -> None:
        """Send a tensor that so many samples have made, which nobody may write to any more; waits if too many are under way."""

    def receive(self, action: Action) -> Tensor:
        """The tensor that the peer sent; waits for it."""

    def reduce(self, action: Action, gradients: list[Tensor]) -> None:
        """Begin to sum gradients over the replicas, in place."""

    def reduced(self, action: Action) -> None:
        """Wait for the sum that the action has begun."""
