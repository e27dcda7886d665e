"""What a learner's step costs: nothing runs, and of a batch only the shapes count."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from localprop.cost.alive import ValueReading, read_values
from localprop.cost.explain import explain, explain_values
from localprop.cost.flops import count_flops
from localprop.cost.memory import MemoryReading, predict_memory
from localprop.engine.trained import Trained
from localprop.network.fast import FastSteps
from localprop.tasks.batch import Batch


class Predicted(Trained):
    """What is trained, with predictions of a step.

    Attributes:
        fast: what makes them faster on this device.
    """

    fast: FastSteps
    _outside: list[Optimizer]  # those that step after the engine

    def memory(self, batch: Any | None = None) -> MemoryReading:
        """Predict the memory of a step on such a batch, by default the sample, in bytes."""
        return predict_memory(self.engine, self._outside, self._like(batch))

    def values(self, batch: Any | None = None) -> ValueReading:
        """Predict which values are alive after each action of such a step, in bytes."""
        return read_values(self.engine, self._outside, self._like(batch))

    def flops(self, batch: Any | None = None) -> int:
        """Count the floating-point operations of such a step: convolutions and matrix products."""
        return count_flops(self.engine, self._outside, self._like(batch))

    def explain(self, *, values: bool = False) -> str:
        """The credit table, the schedule, what each module needs, and what makes the peak.

        Args:
            values: whether to list, for each action, the values that are alive after it.
        """
        reading = self.values()
        lines = [explain(self.engine, reading.memory), explain_values(reading, every=values)]
        return "\n".join([*lines, *self.fast.explain(self.optimizers)])

    def _like(self, batch: Any | None) -> Batch:
        """A batch of which the shapes count, by default the sample."""
        raise NotImplementedError
