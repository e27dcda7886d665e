"""Epochs of steps: learning rates, losses that are read now and then, and how well the network does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from localprop.data import Batches, Dataset
from localprop.errors import RunFailed
from localprop.learner import Learner
from localprop.step.state import Losses
from localprop.training.config import Config, course_of
from localprop.training.phases import Course
from localprop.training.values import COSINES

LOOK_EVERY = 50  # steps; a look at the losses waits for the device
WARMUP_START = 0.01  # the learning rate of the first epoch in the recipe of InfoPro (2021, arXiv 2101.10832)


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did.

    Attributes:
        epoch: its number, from 1.
        lr: its learning rate.
        modules: the modules that have a loss, from 0.
        losses: the mean loss of each of them over the epoch's samples.
        validation_accuracy: of the network after the epoch, 0..1; None without a validation split.
        seconds: of training, without validation.
        peak_memory_bytes: the most that CUDA's allocator held while training, the data set left out; None on other devices.
        validation_loss: the mean cross-entropy of the network, in nats per label; None without a validation split.
    """

    epoch: int
    lr: float
    modules: tuple[int, ...]
    losses: tuple[float, ...]
    validation_accuracy: float | None
    seconds: float
    peak_memory_bytes: int | None = None
    validation_loss: float | None = None


class Score(NamedTuple):
    """How well a network does on a split.

    Attributes:
        accuracy: the share of labels that it gives rightly, 0..1; of text the share of next tokens.
        loss: the mean cross-entropy, in nats per label.
    """

    accuracy: float
    loss: float

    @property
    def bits(self) -> float:
        """The mean cross-entropy in bits per label: of text per byte.

        Example:
            >>> Score(0.5, math.log(2)).bits
            1.0
        """
        return self.loss / math.log(2)


OnEpoch = Callable[[EpochReport], object]
OnStep = Callable[[int, int, int], object]


def lr_at(config: Config, epoch: int) -> float:
    """The learning rate of an epoch: half a cosine from `lr` to 0, mixed with a small start during the warm-up.

    With E epochs, w of them warm-up: b(e) = lr (1 + cos(pi e / E)) / 2, and for e <= w b(e) (e-1)/w + 0.01 (w+1-e)/w. The
    last epoch has 0, where only the statistics of BatchNorm move. "cosine_above_zero" has b(e - 1) for b(e), so that the
    first epoch has lr; "multistep" has b = lr times lr_factor for each milestone that is over; "constant" has b = lr.

    Args:
        config: with lr, lr_schedule, epochs and the warm-up.
        epoch: from 1.

    Example:
        >>> config = Config(lr=0.8, epochs=160)
        >>> [round(lr_at(config, epoch), 5) for epoch in (1, 2, 11, 80, 160)]
        [0.01, 0.08897, 0.79071, 0.4, 0.0]

    Source: the official code of InfoPro, AugLocal and ContSup; cosine_above_zero: AugLocal's for ImageNet.
    """
    base, warmup = config.lr, config.warmup
    if config.lr_schedule in COSINES:
        done = epoch if config.lr_schedule == "cosine" else epoch - 1
        base = 0.5 * config.lr * (1 + math.cos(math.pi * done / config.epochs))
    elif config.lr_schedule == "multistep":
        base = config.lr * config.lr_factor ** sum(epoch > milestone for milestone in config.milestones)
    if epoch > warmup:
        return base
    start = min(WARMUP_START, config.lr)  # a smaller rate than the recipe's 0.8 or 0.1 is not to be exceeded
    return base * (epoch - 1) / warmup + start * (warmup + 1 - epoch) / warmup


def train(
    learner: Learner,
    dataset: Dataset,
    config: Config,
    *,
    start_epoch: int = 0,
    course: Course | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
) -> list[EpochReport]:
    """Train for the epochs of a config; batches are a function of (seed, epoch), so that a run can go on anywhere.

    Args:
        learner: all its optimizers get the epoch's learning rate.
        dataset: the training split is trained on, the validation split measured after each epoch, the test split not read.
        config: epochs, batch size, learning rates and seed.
        start_epoch: epochs done already, by a run whose state the learner has.
        course: who learns in which epoch; made of the config's phases if not given.
        on_epoch: called after each epoch, with its report.
        on_step: called after each step with the epoch, the steps done in it and the steps that it has.

    Raises:
        BadInput: phases that the learner's network refuses.
        RunFailed: a loss that is not finite; says the epoch, step, module and value.
        StepFailed: a step that stopped half-way.

    Example:
        >>> config = Config(model="mlp", epochs=2)
        >>> dataset, learner = prepared(config)
        >>> [report.epoch for report in train(learner, dataset, config)]
        [1, 2]
    """
    batches = Batches(
        dataset,
        "train",
        config.batch_size,
        shuffle=True,
        augment=True,
        seed=config.seed,
        device=learner.device,
        # A last batch of one image is left out: BatchNorm cannot normalise by one value per channel.
        drop_last=len(dataset.train) % config.batch_size == 1 < len(dataset.train),
    )
    course = course or course_of(config, dataset, learner)
    validation = None
    if len(dataset.validation):
        validation = Batches(dataset, "validation", config.batch_size, device=learner.device)
    reports = []
    for epoch in range(start_epoch + 1, config.epochs + 1):
        with course.learning(epoch) as active:
            report = _epoch(active, batches, config, epoch, on_step)
        if validation:
            score = _finite(evaluate(active.predict, validation), f"after epoch {epoch}", config)
            report = replace(report, validation_accuracy=score.accuracy, validation_loss=score.loss)
        reports.append(report)
        if on_epoch:
            on_epoch(report)
    return reports


def _epoch(learner: Learner, batches: Batches, config: Config, epoch: int, on_step: OnStep | None) -> EpochReport:
    lr = lr_at(config, epoch)
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
    _forget_peak(learner.device)
    meter, began = _Meter(epoch, config), time.perf_counter()
    for step, batch in enumerate(batches.epoch(epoch - 1), start=1):
        meter.add(learner.step(batch), len(batch[0]))
        if step % LOOK_EVERY == 0:
            with learner.reported():
                meter.look()
        if on_step:
            on_step(epoch, step, len(batches))
    with learner.reported():
        means = meter.means()
    means = learner.total(means)  # which ends what is late on several ranks
    seconds, peak = time.perf_counter() - began, _peak_bytes(learner.device, batches.held_bytes)
    modules = tuple(learner.wiring.table.at[number] for number in means)
    return EpochReport(epoch, lr, modules, tuple(means.values()), None, seconds, peak)


class _Meter:
    """Sums up the losses of an epoch; they stay on the device until somebody looks."""

    def __init__(self, epoch: int, config: Config) -> None:
        self.numbers: tuple[int, ...] = ()
        self.modules: tuple[int, ...] = ()
        self._epoch = epoch
        self._config = config
        self._steps = 0
        self._samples = 0
        self._unread: list[tuple[Tensor, int]] = []
        self._sums: list[float] = []

    def add(self, losses: Losses, samples: int) -> None:
        """Note the losses of one step over so many samples."""
        self.numbers, self.modules = losses.numbers, losses.modules
        read = torch.stack([loss.float() for loss in losses]) if losses else torch.empty(0)  # a rank may have none
        self._unread.append((read, samples))

    def look(self) -> None:
        """Read the losses noted since the last look, and refuse those that are not finite."""
        if not self._unread:
            return
        read = torch.stack([losses for losses, _ in self._unread]).tolist()
        counts = [samples for _, samples in self._unread]
        self._unread.clear()
        self._sums = self._sums or [0.0] * len(self.numbers)
        for losses, samples in zip(read, counts, strict=True):
            self._steps += 1
            self._samples += samples
            for place, loss in enumerate(losses):
                if not math.isfinite(loss):
                    raise RunFailed(self._story(self.modules[place], loss))
                self._sums[place] += loss * samples

    def means(self) -> dict[int, float]:
        """The mean of each loss here, by its number, over the epoch's samples."""
        self.look()
        return {number: total / self._samples for number, total in zip(self.numbers, self._sums, strict=True)}

    def _story(self, module: int, loss: float) -> str:
        lr = lr_at(self._config, self._epoch)
        advice = f"lower lr (now {self._config.lr}; {self._config.lr / 10:.3g} is a first try), or warm up for longer"
        if self._config.precision != "fp32":
            advice += ", or train with precision=fp32"
        return (
            f"The loss of module {module} is {loss} in epoch {self._epoch}, step {self._steps}, at the learning rate "
            f"{lr:.4g}: {advice} (warmup_epochs is {self._config.warmup})."
        )


def test_score(learner: Learner, dataset: Dataset, config: Config) -> Score:
    """How well the network does on the test split; to be read once, after the last epoch.

    Raises:
        RunFailed: a loss that is not finite.

    Example:
        >>> config = Config(model="mlp", epochs=2)
        >>> dataset, learner = prepared(config)
        >>> 0 <= test_score(learner, dataset, config).accuracy <= 1
        True
    """
    batches = Batches(dataset, "test", config.batch_size, device=learner.device)
    return _finite(evaluate(learner.predict, batches), "on the test split", config)


test_score.__test__ = False  # type: ignore[attr-defined] # to pytest the name is that of a test


@torch.no_grad()
def evaluate(predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Score:
    """The share of labels that are given rightly, and the mean cross-entropy.

    Args:
        predict: from inputs (N, ...) to logits (N, classes), or (N, T, classes): a learner's `predict`.
        batches: inputs and labels (N,), or (N, T); none at all make an accuracy and a loss of 0.

    Example:
        >>> evaluate(nn.Flatten(), [(torch.eye(3), torch.tensor([0, 1, 0]))]).accuracy
        0.6666666666666666
    """
    right: Tensor | int = 0
    losses: list[Tensor] = []  # stay on the device until the end; summed on the CPU in double precision
    count = 0
    for inputs, labels in batches:
        logits = predict(inputs).float()
        right = right + (logits.argmax(-1) == labels).sum()
        losses.append(functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum"))
        count += labels.numel()
    total = sum(torch.stack(losses).tolist()) if losses else 0.0
    return Score(int(right) / max(count, 1), total / max(count, 1))


def _finite(score: Score, where: str, config: Config) -> Score:
    if math.isfinite(score.loss):
        return score
    raise RunFailed(
        f"The network's loss is {score.loss} {where}: lower lr (now {config.lr}), or train with clip_norm=1."
    )


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_bytes(device: torch.device, data_bytes: int) -> int | None:
    return torch.cuda.max_memory_allocated(device) - data_bytes if device.type == "cuda" else None
