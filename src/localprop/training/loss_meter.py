"""The losses of an epoch: averaged, and watched for NaN and infinity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from localprop.engine.loss import Losses
from localprop.errors import RunFailed
from localprop.training.config import Config
from localprop.training.learning_rates import lr_at


@dataclass(frozen=True)
class PartialEpoch:
    """What an epoch has come to that was stopped between two steps.

    Attributes:
        step: the steps done.
        samples: their samples.
        sums: of each loss, the sum of its values over the samples.
        seconds: seconds of training.
    """

    step: int = 0
    samples: int = 0
    sums: tuple[float, ...] = ()
    seconds: float = 0.0


class LossMeter:
    """Averages the losses of an epoch. They stay on the device until they are read."""

    def __init__(self, epoch: int, config: Config, done: PartialEpoch) -> None:
        self.numbers: tuple[int, ...] = ()
        self.modules: tuple[int, ...] = ()
        self.skipped = 0
        self._epoch = epoch
        self._config = config
        self._steps = done.step
        self._samples = done.samples
        self._unread: list[tuple[Tensor, int]] = []
        self._sums = [*done.sums]

    def add(self, losses: Losses, samples: int) -> None:
        """Add the losses of one step, and the number of its samples."""
        self.numbers, self.modules = losses.rows, losses.modules
        # A rank may have no loss of its own.
        values = torch.stack([loss.float() for loss in losses]) if losses else torch.empty(0)
        self._unread.append((values, samples))

    def skip(self) -> None:
        """Count a step that was not taken."""
        self._steps += 1
        self.skipped += 1

    def read(self) -> None:
        """Read the losses added since the last call, all with one transfer from the device.

        Raises:
            RunFailed: a loss is not finite.
        """
        if not self._unread:
            return
        values = torch.stack([losses for losses, _ in self._unread]).tolist()
        counts = [samples for _, samples in self._unread]
        self._unread.clear()
        self._sums = self._sums or [0.0] * len(self.numbers)
        for losses, samples in zip(values, counts, strict=True):
            self._steps += 1
            self._samples += samples
            for i, loss in enumerate(losses):
                if not math.isfinite(loss):
                    finding = f"the loss of module {self.modules[i]} is {loss}"
                    raise RunFailed(self.describe_failure(finding, self._steps))
                self._sums[i] += loss * samples

    def take(self, seconds: float) -> PartialEpoch:
        """What the epoch has come to."""
        self.read()
        return PartialEpoch(self._steps, self._samples, (*self._sums,), seconds)

    def compute_means(self) -> dict[int, float]:
        """Average each loss of this process over the epoch's samples, by its number.

        Raises:
            RunFailed: no step was taken.
        """
        self.read()
        if self.skipped and not self._samples:
            raise RunFailed(self.describe_failure("no batch has finite numbers", self._steps))
        return {
            number: total / self._samples
            for number, total in zip(self.numbers, self._sums, strict=True)
        }

    def describe_failure(self, finding: str, step: int) -> str:
        """What was found, where, and what would help."""
        config = self._config
        advice = f"lower lr (now {config.lr}; try {config.lr / 10:.3g} first), or warm up longer"
        if config.precision != "fp32":
            advice += ", or train with precision=fp32"
        return (
            f"In epoch {self._epoch}, step {step}, {finding} at the learning rate "
            f"{lr_at(config, self._epoch):.4g}: {advice} "
            f"(warmup_epochs is {config.warmup})."
        )
