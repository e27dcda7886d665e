"""What carries tensors between ranks, as an engine sees it, and the actions that use it.

A message moves a value from the store of one rank to that of another, where it has the same name.
So messages need no code of their own per kind; layout and size are the communicator's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from localprop.engine.backward import GradientPart
from localprop.engine.forward import canonical_layout
from localprop.engine.optimizers import Optimizers, find_sums_apart
from localprop.engine.plan import StepPlan
from localprop.engine.store import StepContext
from localprop.schedule.schedule import Action, Op, Schedule
from localprop.schedule.values import Kind
from localprop.tasks.batch import Batch


class Communicator(Protocol):
    """Carries tensors between ranks. Messages of one kind between two ranks arrive in the order of
    their sending.
    """

    max_in_flight: int  # messages of one kind to one rank that may be under way at once

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

    def send(self, action: Action, tensors: Sequence[Tensor | None], batch: Batch) -> None:
        """Send tensors made from a micro-batch, which nobody may write to any more; wait if too
        many messages are under way. None stands for a gradient that no loss has left.
        """

    def receive(self, action: Action, count: int) -> list[Tensor | None]:
        """Wait for the next message of the peer, which has so many tensors."""

    def start_reduce(self, action: Action, gradients: list[Tensor]) -> None:
        """Begin to sum gradients over the replicas, in place."""

    def finish_reduce(self, action: Action) -> None:
        """Wait for the sum that belongs to a step."""


class SendValue:
    """SEND_F, SEND_B, SEND_C: send a value.

    Args:
        plan: of the step.
        action: the message.
        communicator: what carries it.
    """

    def __init__(self, plan: StepPlan, action: Action, communicator: Communicator) -> None:
        self._action, self._communicator = action, communicator
        reads = plan.liveness.operands[action].reads
        self._values = [(value, plan.liveness.takes(action, value)) for value in reads]

    def __call__(self, step: StepContext) -> None:
        """Send it."""
        batch = step.batches[self._action.microbatch]
        self._communicator.send(self._action, self._take(step), batch)

    def _take(self, step: StepContext) -> list[Tensor | None]:
        tensors: list[Tensor | None] = []
        for value, takes in self._values:
            taken = step.store.pop(value) if takes else step.store[value]
            # Outputs are dense when they are written. A module's input, to which contexts are
            # added, may not be.
            if value.kind is Kind.CONTEXT:
                taken = canonical_layout(taken)
            tensors += taken if isinstance(taken, list) else [taken]
        return tensors


class ReceiveValue:
    """RECV_F, RECV_B, RECV_C: receive a value.

    Args:
        plan: of the step.
        action: the message.
        communicator: what carries it.
    """

    def __init__(self, plan: StepPlan, action: Action, communicator: Communicator) -> None:
        self._action, self._communicator = action, communicator
        self._value, *skips = plan.liveness.operands[action].writes
        self._skips = skips[0] if skips else None
        output = action.op is Op.RECV_F
        self._count = len(plan.wiring.message_shapes(action.segment, 1, output=output))
        # A gradient that comes from another rank is a part like those made here, and takes its
        # place in the order of the sum.
        self._part = GradientPart(plan, self._value) if self._value.kind is Kind.GRADIENT else None

    def __call__(self, step: StepContext) -> None:
        """Receive it."""
        tensors = self._communicator.receive(self._action, self._count)
        if self._value.kind is Kind.OUTPUT:
            step.store[self._value] = tensors
            return
        first = tensors.pop(0)
        assert first is not None  # that at the features is always there
        if self._part is None:
            step.store[self._value] = first
        else:
            self._part.write(step.store, first)
        if self._skips is not None:
            step.store[self._skips] = tensors


class StartReduce:
    """REDUCE_S, REDUCE_H: begin to sum gradients over the replicas.

    Args:
        plan: of the step.
        action: the sum.
        optimizers: know the parameters.
        communicator: what carries the gradients.
    """

    def __init__(
        self, plan: StepPlan, action: Action, optimizers: Optimizers, communicator: Communicator
    ) -> None:
        self._action, self._optimizers, self._communicator = action, optimizers, communicator
        self._apart = find_sums_apart(plan, action)

    def __call__(self, step: StepContext) -> None:
        """Begin."""
        # Sums of flows cross the replicas one by one, in place. The step adds them afterwards, in
        # the order in which one process does.
        apart = [g for value in self._apart for g in step.store[value][1] if g is not None]
        self._communicator.start_reduce(
            self._action, self._optimizers.gradients(self._action) + apart
        )
