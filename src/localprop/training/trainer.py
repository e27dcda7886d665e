"""Epochs of steps: learning rates, losses that are read now and then, and accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from localprop.data import Batches, Dataset
from localprop.errors import RunFailed
from localprop.learner import Learner
from localprop.step.state import Losses
from localprop.training.config import Config

LOOK_EVERY = 50  # steps; a look at the losses waits for the device
WARMUP_START = 0.01  # the learning rate of the first epoch in the recipe of InfoPro (2021, arXiv 2101.10832)


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did.

    Attributes:
        epoch: its number, from 1.
        lr: its learning rate.
        modules: the modules that have a loss, from 0.
        losses: the mean loss of each of them over the epoch's images.
        validation_accuracy: of the network after the epoch, 0..1; None without a validation split.
        seconds: of training, without validation.
        peak_memory_bytes: the most that CUDA's allocator held while training; None on other devices.
    """

    epoch: int
    lr: float
    modules: tuple[int, ...]
    losses: tuple[float, ...]
    validation_accuracy: float | None
    seconds: float
    peak_memory_bytes: int | None = None


OnEpoch = Callable[[EpochReport], object]
OnStep = Callable[[int, int, int], object]


def lr_at(config: Config, epoch: int) -> float:
    """The learning rate of an epoch: half a cosine from `lr` to 0, mixed with a small start during the warm-up.

    With E epochs, w of them warm-up: b(e) = lr (1 + cos(pi e / E)) / 2, and for e <= w b(e) (e-1)/w + 0.01 (w+1-e)/w. The
    last epoch has 0, where only the statistics of BatchNorm move. A constant schedule has b = lr.

    Args:
        config: with lr, lr_schedule, epochs and the warm-up.
        epoch: from 1.

    Example:
        >>> config = Config(lr=0.8, epochs=160)
        >>> [round(lr_at(config, epoch), 5) for epoch in (1, 2, 11, 80, 160)]
        [0.01, 0.08897, 0.79071, 0.4, 0.0]

    Source: the official code of InfoPro, AugLocal and ContSup.
    """
    base, warmup = config.lr, config.warmup
    if config.lr_schedule == "cosine":
        base = 0.5 * config.lr * (1 + math.cos(math.pi * epoch / config.epochs))
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
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
) -> list[EpochReport]:
    """Train for the epochs of a config; batches are a function of (seed, epoch), so that a run can go on anywhere.

    Args:
        learner: all its optimizers get the epoch's learning rate.
        dataset: the training split is trained on, the validation split measured after each epoch, the test split not read.
        config: epochs, batch size, learning rates and seed.
        start_epoch: epochs done already, by a run whose state the learner has.
        on_epoch: called after each epoch, with its report.
        on_step: called after each step with the epoch, the steps done in it and the steps that it has.

    Raises:
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
    reports = []
    for epoch in range(start_epoch + 1, config.epochs + 1):
        report = _epoch(learner, dataset, batches, config, epoch, on_step)
        reports.append(report)
        if on_epoch:
            on_epoch(report)
    return reports


def _epoch(
    learner: Learner, dataset: Dataset, batches: Batches, config: Config, epoch: int, on_step: OnStep | None
) -> EpochReport:
    lr = lr_at(config, epoch)
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
    learner.network.train()
    learner.heads.train()
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
    seconds, peak = time.perf_counter() - began, _peak_bytes(learner.device)
    validation = _validation(learner, dataset, config)
    modules = tuple(learner.wiring.table.at[number] for number in means)
    return EpochReport(epoch, lr, modules, tuple(means.values()), validation, seconds, peak)


class _Meter:
    """Sums up the losses of an epoch; they stay on the device until somebody looks."""

    def __init__(self, epoch: int, config: Config) -> None:
        self.numbers: tuple[int, ...] = ()
        self.modules: tuple[int, ...] = ()
        self._epoch = epoch
        self._config = config
        self._steps = 0
        self._images = 0
        self._unread: list[tuple[Tensor, int]] = []
        self._sums: list[float] = []

    def add(self, losses: Losses, images: int) -> None:
        """Note the losses of one step over so many images."""
        self.numbers, self.modules = losses.numbers, losses.modules
        read = torch.stack([loss.float() for loss in losses]) if losses else torch.empty(0)  # a rank may have none
        self._unread.append((read, images))

    def look(self) -> None:
        """Read the losses noted since the last look, and refuse those that are not finite."""
        if not self._unread:
            return
        read = torch.stack([losses for losses, _ in self._unread]).tolist()
        counts = [images for _, images in self._unread]
        self._unread.clear()
        self._sums = self._sums or [0.0] * len(self.numbers)
        for losses, images in zip(read, counts, strict=True):
            self._steps += 1
            self._images += images
            for place, loss in enumerate(losses):
                if not math.isfinite(loss):
                    raise RunFailed(self._story(self.modules[place], loss))
                self._sums[place] += loss * images

    def means(self) -> dict[int, float]:
        """The mean of each loss here, by its number, over the epoch's images."""
        self.look()
        return {number: total / self._images for number, total in zip(self.numbers, self._sums, strict=True)}

    def _story(self, module: int, loss: float) -> str:
        lr = lr_at(self._config, self._epoch)
        advice = f"lower lr (now {self._config.lr}; {self._config.lr / 10:.3g} is a first try), or warm up for longer"
        if self._config.precision != "fp32":
            advice += ", or train with precision=fp32"
        return (
            f"The loss of module {module} is {loss} in epoch {self._epoch}, step {self._steps}, at the learning rate "
            f"{lr:.4g}: {advice} (warmup_epochs is {self._config.warmup})."
        )


def _validation(learner: Learner, dataset: Dataset, config: Config) -> float | None:
    if not len(dataset.validation):
        return None
    return evaluate(learner.predict, Batches(dataset, "validation", config.batch_size, device=learner.device))


def test_accuracy(learner: Learner, dataset: Dataset, config: Config) -> float:
    """The share of test images that the network labels rightly, 0..1; to be read once, after the last epoch.

    Example:
        >>> config = Config(model="mlp", epochs=2)
        >>> dataset, learner = prepared(config)
        >>> 0 <= test_accuracy(learner, dataset, config) <= 1
        True
    """
    return evaluate(learner.predict, Batches(dataset, "test", config.batch_size, device=learner.device))


test_accuracy.__test__ = False  # type: ignore[attr-defined] # to pytest the name is that of a test


@torch.no_grad()
def evaluate(predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of images that are labelled rightly, 0..1.

    Args:
        predict: from images (N, ...) to logits (N, classes): a learner's `predict`.
        batches: images and labels (N,); none at all make an accuracy of 0.

    Example:
        >>> evaluate(nn.Flatten(), [(torch.eye(3), torch.tensor([0, 1, 0]))])
        0.6666666666666666
    """
    right: Tensor | int = 0
    images = 0
    for inputs, labels in batches:
        right = right + (predict(inputs).argmax(-1) == labels).sum()
        images += len(labels)
    return int(right) / max(images, 1)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
