"""Benchmarks of the engine itself: memory against the plain loop and against its own prediction, and time per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from localprop.learner import Learner
from localprop.models import create_model
from localprop.network import Layers, Partition, layers_of
from localprop.report.contender import Contender
from localprop.report.costs import PlainLoop, Timing, interleaved, peak_bytes
from localprop.report.images import image_problems, is_count
from localprop.rule.auxiliary import Normalised
from localprop.rule.losses import Batch
from localprop.training.config import device_of, noting
from localprop.training.expression import rule_of

CLASSES = 10


@dataclass(frozen=True)
class Setting:
    """What a benchmark runs on: random images through a network, since neither memory nor time depends on their values.

    Attributes:
        model: as in a config.
        modules: the number of local modules.
        batch_size: images per batch.
        input_shape: (C, H, W) of an image.
        momentum: of SGD; it doubles the bytes of the parameters.
        device: auto, cpu or cuda.
        seed: of weights and images.
    """

    model: str = "resnet110"
    modules: int = 16
    batch_size: int = 128
    input_shape: tuple[int, ...] = (3, 32, 32)
    momentum: float = 0.0
    device: str = "auto"
    seed: int = 0

    def problems(self) -> list[str]:
        """All that is wrong with the values, one sentence each.

        Example:
            >>> Setting(modules=0, momentum=2.0).problems()
            ['modules=0 must be a whole number of 1 or more.', 'momentum=2.0 must be a number in [0, 1).']
        """
        wrong = [name for name in ("modules", "batch_size") if not is_count(getattr(self, name))]
        found = [f"{name}={getattr(self, name)!r} must be a whole number of 1 or more." for name in wrong]
        if not isinstance(self.momentum, int | float) or not 0 <= self.momentum < 1:
            found.append(f"momentum={self.momentum!r} must be a number in [0, 1).")
        with noting(found):
            device_of(self.device)
        return found + image_problems(self.model, CLASSES, self.input_shape)

    def batch(self) -> Batch:
        """Random images and labels."""
        generator = torch.Generator().manual_seed(self.seed)
        images = torch.randn(self.batch_size, *self.input_shape, generator=generator)
        labels = torch.randint(CLASSES, (self.batch_size,), generator=generator)
        device = device_of(self.device)
        return Batch(images.to(device), labels.to(device))

    def network(self) -> nn.Module:
        """A new network, with weights of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return create_model(self.model, CLASSES, self.input_shape).to(device_of(self.device))

    def optimizer(self) -> Callable[[list[nn.Parameter]], Optimizer]:
        """A factory of SGD."""
        return lambda parameters: SGD(parameters, lr=0.01, momentum=self.momentum)

    def learner(self, contender: Contender, batch: Batch) -> Learner:
        """A new learner of a contender's method."""
        model = self.network()
        layers: Layers = layers_of(model, batch)
        return Learner(
            model,
            rule_of(contender.method),
            partition=Partition.uniform(layers, self.modules),
            optimizer=self.optimizer(),
            sample=batch,
            recompute=contender.recompute,
            seed=self.seed,
            normalised=Normalised(),  # for losses that look at pixels; no cost depends on their values
        )

    def plain(self, batch: Batch) -> PlainLoop:
        """The baseline."""
        model = self.network()
        return PlainLoop(model, self.optimizer()(list(model.parameters())), batch)


@dataclass(frozen=True)
class MemoryRow:
    """One method's peak.

    Attributes:
        method: its label.
        peak_bytes: measured.
        saving: 1 - its share of the plain loop's peak.
        predicted_bytes: by the engine on fake tensors; on a CUDA device the allocator rounds, and kernels need workspace.
        error: predicted / measured - 1.
    """

    method: str
    peak_bytes: int
    saving: float
    predicted_bytes: int
    error: float


def memory(
    setting: Setting, contenders: Sequence[Contender], progress: Callable[[str], object] = print
) -> tuple[int, list[MemoryRow]]:
    """The measured peak of the plain PyTorch loop, and of every method beside its prediction, in bytes.

    Raises:
        BadInput: a method that the network cannot be trained with.
    """
    batch = setting.batch()
    progress("plain PyTorch loop")
    plain = setting.plain(batch)
    plain.step()
    base = plain.peak_bytes()
    del plain
    rows = []
    for contender in contenders:
        progress(contender.label)
        learner = setting.learner(contender, batch)
        predicted = learner.memory(batch).peak_bytes
        learner.step(batch)
        measured = peak_bytes(learner, batch)
        rows.append(MemoryRow(contender.label, measured, 1 - measured / base, predicted, predicted / measured - 1))
    return base, rows


@dataclass(frozen=True)
class SpeedRow:
    """One method's time.

    Attributes:
        method: its label.
        timing: seconds, and ratio to the plain loop's.
        actions: of its schedule.
    """

    method: str
    timing: Timing
    actions: int


def speed(
    setting: Setting, contenders: Sequence[Contender], rounds: int, progress: Callable[[str], object] = print
) -> tuple[float, list[SpeedRow]]:
    """Seconds of a step of the plain PyTorch loop, and every method's beside it, in interleaved rounds.

    Raises:
        BadInput: a method that the network cannot be trained with.
    """
    batch = setting.batch()
    plain = setting.plain(batch)
    learners = {contender.label: setting.learner(contender, batch) for contender in contenders}
    steps: dict[str, Callable[[], object]] = {"": plain.step}
    for label, learner in learners.items():
        steps[label] = _stepping(learner, batch)
    progress("warming up")
    for step in steps.values():
        step()
        step()
    progress(f"{rounds} interleaved rounds of {len(steps)} steps")
    timings = interleaved(steps, "", rounds, batch.inputs.device)
    rows = [SpeedRow(label, timings[label], len(learner.schedule)) for label, learner in learners.items()]
    return timings[""].seconds, rows


def _stepping(learner: Learner, batch: Batch) -> Callable[[], Any]:
    return lambda: learner.step(batch)
