"""What a step costs: peak memory, seconds, operations; everything beside the plain PyTorch loop, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from localprop.learner import Learner
from localprop.rule.losses import Batch
from localprop.step.flops import Flops
from localprop.step.memory import peak_of
from localprop.step.twin import held_by

Step = Callable[[], object]


class PlainLoop:
    """End-to-end training as everybody writes it; the baseline of every cost.

    Args:
        model: trained in place.
        optimizer: of all its parameters.
        batch: the batch that every step sees.
        label_smoothing: of the cross-entropy.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, batch: Batch, label_smoothing: float = 0.0) -> None:
        self.model = model
        self.optimizer = optimizer
        self.batch = batch
        self.label_smoothing = label_smoothing

    def step(self) -> Tensor:
        """One training step."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(self.batch.inputs).flatten(0, -2)  # (N, T, classes): a target for each position
        loss = functional.cross_entropy(logits, self.batch.targets.flatten(), label_smoothing=self.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss

    def peak_bytes(self) -> int:
        """The measured peak of a step."""
        held = held_by([self.model], [self.optimizer], self.batch)
        return peak_of(self.step, held, self.batch.inputs.device).peak_bytes

    def flops(self) -> int:
        """The operations of a step, counted while it runs."""
        with Flops() as counted:
            self.step()
        total: int = counted.total
        return total


def peak_bytes(learner: Learner, batch: Batch) -> int:
    """The measured peak of a learner's step, which must have run before."""
    held = held_by([learner.model, learner.heads, learner.encoders], learner.optimizers, batch)
    return peak_of(lambda: learner.step(batch), held, learner.device).peak_bytes


@dataclass(frozen=True)
class Timing:
    """Seconds of a step over several interleaved rounds.

    Attributes:
        seconds: the median.
        ratio: the median over the rounds of its seconds to the baseline's in the same round.
        low: the lower quartile of these ratios.
        high: the upper quartile.
    """

    seconds: float
    ratio: float
    low: float
    high: float


def interleaved(steps: Mapping[str, Step], baseline: str, rounds: int, device: torch.device) -> dict[str, Timing]:
    """Time steps in turn, round after round, so that the machine's moods fall on all of them alike.

    Args:
        steps: by name; each has run before.
        baseline: the name that ratios refer to.
        rounds: how often each is timed; 2 or more.
        device: waited for before the clock is read.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(_timed(step, device))
    return {name: _timing(own, seconds[baseline]) for name, own in seconds.items()}


def _timing(own: list[float], base: list[float]) -> Timing:
    ratios = [a / b for a, b in zip(own, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Timing(statistics.median(own), middle, low, high)


def _timed(step: Step, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
