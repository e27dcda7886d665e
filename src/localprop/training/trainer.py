"""Train for epochs: losses read at intervals, and validation after each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from localprop.data import Batches, Dataset
from localprop.errors import NotFinite, RunFailed
from localprop.learner import Learner
from localprop.training.build import build_phase_schedule
from localprop.training.config import Config
from localprop.training.exits import score_exits
from localprop.training.learning_rates import lr_at
from localprop.training.loss_meter import LossMeter, PartialEpoch
from localprop.training.phase_schedule import PhaseSchedule
from localprop.training.scores import Score, check_finite
from localprop.training.tf32 import use_tf32

__all__ = ["EpochReport"]

READ_EVERY = 50  # steps; reading the losses makes the CPU wait for the device


@dataclass(frozen=True)
class EpochReport:
    """The results of one epoch.

    Attributes:
        epoch: its number, from 1.
        lr: its learning rate.
        modules: the modules that have a loss, from 0.
        losses: the mean loss of each of these modules over the epoch's samples.
        validation_accuracy: of the network after the epoch, in 0..1; None without a validation
            split.
        seconds: seconds of training, without validation.
        peak_memory_bytes: the most that CUDA's allocator held during training, without the data
            set; None on other devices.
        validation_loss: the mean cross-entropy of the network, in nats per label; None without a
            validation split.
        skipped: batches that were left out, since their numbers were not finite.
        exits: the modules whose heads predict labels, and the last one, the network itself; empty
            without a validation split.
        exit_accuracies: the validation accuracy at each of these exits.
        exit_losses: the validation loss at each of them; None where it is not finite.
    """

    epoch: int
    lr: float
    modules: tuple[int, ...]
    losses: tuple[float, ...]
    validation_accuracy: float | None
    seconds: float
    peak_memory_bytes: int | None = None
    validation_loss: float | None = None
    skipped: int = 0
    exits: tuple[int, ...] = ()
    exit_accuracies: tuple[float, ...] = ()
    exit_losses: tuple[float | None, ...] = ()


class TrainingStopped(Exception):
    """Training has stopped because it was asked to, between two steps.

    Attributes:
        epoch: the epochs done.
        partial: what the next epoch has come to; None if it has not begun.
    """

    def __init__(self, epoch: int, partial: PartialEpoch | None) -> None:
        super().__init__(f"stopped after epoch {epoch}")
        self.epoch = epoch
        self.partial = partial


# Called after each epoch.
OnEpoch = Callable[[EpochReport], object]
# Called after each step with the epoch, the steps done in it, and the steps that it has.
OnStep = Callable[[int, int, int], object]
# Asked after each step.
ShouldStop = Callable[[], bool]


# --- epochs ---------------------------------------------------------------------------------------


def train(
    learner: Learner,
    dataset: Dataset,
    config: Config,
    *,
    start_epoch: int = 0,
    phase_schedule: PhaseSchedule | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    partial: PartialEpoch | None = None,
    should_stop: ShouldStop = lambda: False,
) -> list[EpochReport]:
    """Train for the epochs of a config.

    The batches of an epoch depend on the seed and its number alone, so that a run can continue
    after any step.

    Args:
        learner: all its optimizers get the learning rate of the epoch.
        dataset: trains on the training split, and scores the validation split after each epoch.
            Does not read the test split.
        config: gives epochs, batch size, learning rates and seed.
        start_epoch: the number of epochs done before, by a run whose state the learner has.
        phase_schedule: built from the config's phases if not given.
        on_epoch: called after each epoch, with its report.
        on_step: called after each step.
        partial: what the first epoch had come to, if its first steps are done.
        should_stop: asked after each step whether to stop.

    Raises:
        TrainingStopped: `should_stop` has returned True.
        BadInput: the phases do not fit the learner's network.
        RunFailed: a loss or a gradient is not finite, and `on_nonfinite` does not skip it; names
            the epoch, step, module and value.
        StepFailed: a step stopped half-way.

    Example:
        >>> config = Config(model="mlp", epochs=2)
        >>> dataset, learner = prepare(config)
        >>> [report.epoch for report in train(learner, dataset, config)]
        [1, 2]
    """
    batches = _make_training_batches(dataset, config, learner.device)
    phase_schedule = phase_schedule or build_phase_schedule(config, dataset, learner)
    validation = None
    if len(dataset.validation):
        validation = Batches(dataset, "validation", config.batch_size, device=learner.device)
    reports = []
    for epoch in range(start_epoch + 1, config.epochs + 1):
        phase = phase_schedule.activate_phase(epoch, begun=partial is not None)
        with phase as active, use_tf32(config.tf32):
            done = partial or PartialEpoch()
            report = _train_epoch(active, batches, config, epoch, on_step, done, should_stop)
            partial = None
        if validation:
            report = _add_validation(report, score_exits(active, validation), config)
        reports.append(report)
        if on_epoch:
            on_epoch(report)
        if epoch < config.epochs and should_stop():
            raise TrainingStopped(epoch, None)
    return reports


def _add_validation(report: EpochReport, exits: Mapping[int, Score], config: Config) -> EpochReport:
    """Add the scores of the network, the last exit, and of all exits."""
    *_, score = exits.values()
    check_finite(score, f"after epoch {report.epoch}", config)
    losses = (each.loss if math.isfinite(each.loss) else None for each in exits.values())
    return replace(
        report,
        validation_accuracy=score.accuracy,
        validation_loss=score.loss,
        exits=tuple(exits),
        exit_accuracies=tuple(each.accuracy for each in exits.values()),
        exit_losses=tuple(losses),
    )


def _make_training_batches(dataset: Dataset, config: Config, device: torch.device) -> Batches:
    return Batches(
        dataset,
        "train",
        config.batch_size,
        shuffle=True,
        augment=True,
        seed=config.seed,
        device=device,
        # BatchNorm cannot normalise one value per channel: a last batch of one sample is dropped.
        drop_last=len(dataset.train) % config.batch_size == 1 < len(dataset.train),
    )


def _train_epoch(
    learner: Learner,
    batches: Batches,
    config: Config,
    epoch: int,
    on_step: OnStep | None,
    done: PartialEpoch,
    should_stop: ShouldStop,
) -> EpochReport:
    lr = lr_at(config, epoch)
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
    _reset_peak(learner.device)
    meter, start = LossMeter(epoch, config, done), time.perf_counter() - done.seconds
    for step, batch in enumerate(batches.epoch(epoch - 1, skip=done.step), start=done.step + 1):
        skipped = learner.skipped
        try:
            losses = learner.step(batch)
        except NotFinite as error:
            raise RunFailed(meter.describe_failure(error.finding, step)) from error
        if learner.skipped == skipped:
            meter.add(losses, len(batch[0]))
        else:
            meter.skip()
        if step % READ_EVERY == 0:
            with learner.report_failures():
                meter.read()
        if on_step:
            on_step(epoch, step, len(batches))
        if step < len(batches) and should_stop():
            learner.flush()
            raise TrainingStopped(epoch - 1, meter.take(time.perf_counter() - start))
    with learner.report_failures():
        means = meter.compute_means()
    means = learner.total(means)  # on several ranks, also runs the deferred actions
    seconds, peak = time.perf_counter() - start, _read_peak(learner.device, batches.held_bytes)
    modules = tuple(learner.wiring.table.module_of_loss[number] for number in means)
    return EpochReport(
        epoch, lr, modules, (*means.values(),), None, seconds, peak, skipped=meter.skipped
    )


# --- memory ---------------------------------------------------------------------------------------


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _read_peak(device: torch.device, data_bytes: int) -> int | None:
    return torch.cuda.max_memory_allocated(device) - data_bytes if device.type == "cuda" else None
