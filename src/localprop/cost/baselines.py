"""The plain PyTorch loop as the baseline of every cost, and interleaved timing of several steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from localprop.cost.fake_engine import list_held_tensors
from localprop.cost.flops import FlopCounter
from localprop.cost.memory import measure_peak
from localprop.network.layers import Layers
from localprop.tasks.batch import Batch

Step = Callable[[], object]


class PlainLoop:
    """End-to-end training without this library: zero_grad, forward, backward, step.

    Args:
        model: trained in place.
        optimizer: of all parameters of the model.
        batch: the batch of every step.
        label_smoothing: of the cross-entropy.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, batch: Batch, label_smoothing: float = 0.0
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.batch = batch
        self.label_smoothing = label_smoothing

    def step(self) -> Tensor:
        """Run one training step and return its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        # (N, classes), or (N, T, classes) with a target for each position.
        logits = self.model(self.batch.inputs).flatten(0, -2)
        loss = functional.cross_entropy(
            logits, self.batch.targets.flatten(), label_smoothing=self.label_smoothing
        )
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss

    def peak_bytes(self) -> int:
        """The measured peak memory of a step."""
        held = list_held_tensors([self.model], [self.optimizer], self.batch)
        return measure_peak(self.step, held, self.batch.inputs.device).peak_bytes

    def flops(self) -> int:
        """The floating-point operations of a step, counted while it runs."""
        with FlopCounter() as counter:
            self.step()
        total: int = counter.total
        return total


def checkpoint_blocks(model: nn.Module, layers: Layers) -> None:
    """Let the blocks among the layers of a model run again by `torch.utils.checkpoint`.

    Args:
        model: changed in place.
        layers: of the model; those that are one call of a module with modules inside are blocks.
    """
    for calls in layers.calls:
        for call in calls:
            block = model.get_submodule(call.name)
            if any(True for _ in block.children()):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@dataclass(frozen=True)
class Timing:
    """Seconds of a step over several interleaved rounds.

    Attributes:
        seconds: the median.
        ratio: the median over rounds of its seconds divided by the baseline's in the same round.
        low: the lower quartile of these ratios.
        high: the upper quartile.
    """

    seconds: float
    ratio: float
    low: float
    high: float


def time_interleaved(
    steps: Mapping[str, Step], baseline: str, rounds: int, device: torch.device
) -> dict[str, Timing]:
    """Time steps in turn, round after round, so that changes of the machine's speed affect all.

    Args:
        steps: by name; each must have run before.
        baseline: the name that ratios refer to.
        rounds: how often each step is timed; 2 or more.
        device: synchronised before the clock is read.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(_time_step(step, device))
    return {name: _summarize(spent, seconds[baseline]) for name, spent in seconds.items()}


def _summarize(seconds: list[float], baseline_seconds: list[float]) -> Timing:
    ratios = [a / b for a, b in zip(seconds, baseline_seconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Timing(statistics.median(seconds), middle, low, high)


def _time_step(step: Step, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
