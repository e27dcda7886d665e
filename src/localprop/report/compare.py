"""Methods side by side on one network and data set: what `localprop compare` runs and prints."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from localprop.data import Batches, Dataset
from localprop.errors import RunFailed, StepFailed
from localprop.learner import Learner
from localprop.report.contender import Contender, suited
from localprop.report.costs import PlainLoop, Timing, interleaved, peak_bytes
from localprop.rule.losses import Batch
from localprop.training.config import Config, build
from localprop.training.optimizers import optimizer_of
from localprop.training.trainer import Score, test_score, train

Progress = Callable[[str, int], object]  # (what is going on, how many epochs have been done since the last call)
_PLAIN = "plain PyTorch loop"


@dataclass(frozen=True)
class Row:
    """One method's figures.

    Attributes:
        method: its label.
        modules: how many modules learn apart from each other; neighbours with the same credit count as one.
        accuracy_mean: test accuracy after the last epoch, mean over the seeds, in percent; None if a run has failed.
        accuracy_std: its standard deviation over the seeds, in points; None if a run has failed, or of one seed.
        accuracies: of each seed; None of one whose run has failed.
        loss_mean: mean cross-entropy on the test split after the last epoch, in nats per label; None like accuracy_mean.
        loss_std: its standard deviation over the seeds; None like accuracy_std.
        losses: of each seed; None of one whose run has failed.
        failures: why, one sentence for each run that has failed.
        peak_bytes: measured peak of a training step.
        peak_ratio: to the plain PyTorch loop's.
        step_ratio: seconds per step to the plain PyTorch loop's, median of interleaved rounds.
        step_ratio_low: the lower quartile of that.
        step_ratio_high: the upper quartile.
        flops_ratio: operations per step to the plain PyTorch loop's.
        head_parameters: of all auxiliary networks.
        context_parameters: of all encoders, which are deployed.
    """

    method: str
    modules: int
    accuracy_mean: float | None
    accuracy_std: float | None
    accuracies: tuple[float | None, ...]
    loss_mean: float | None
    loss_std: float | None
    losses: tuple[float | None, ...]
    failures: tuple[str, ...]
    peak_bytes: int
    peak_ratio: float
    step_ratio: float
    step_ratio_low: float
    step_ratio_high: float
    flops_ratio: float
    head_parameters: int
    context_parameters: int


@dataclass(frozen=True)
class Comparison:
    """All rows of a comparison, and the baseline's costs.

    Attributes:
        baseline: the plain PyTorch loop: its `peak_bytes`, `step_seconds` and `flops`.
        rows: in the order of the contenders.
        config: what all runs share.
        seeds: of the runs.
        runs_left: how many runs have not ended yet; then rows or their last seeds are missing.
    """

    baseline: dict[str, Any]
    rows: tuple[Row, ...]
    config: Config
    seeds: tuple[int, ...]
    runs_left: int

    def as_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "baseline": self.baseline,
            "rows": [asdict(row) for row in self.rows],
            "config": asdict(self.config),
            "seeds": list(self.seeds),
            "runs_left": self.runs_left,
        }


def compare(
    config: Config,
    dataset: Dataset,
    contenders: Sequence[Contender],
    *,
    seeds: int = 3,
    rounds: int = 15,
    progress: Progress = lambda what, epochs: None,
    keep: Callable[[Comparison], object] = lambda comparison: None,
) -> Comparison:
    """Train every contender with every seed, and measure what a step of each costs. A run that fails does not end the others.

    Args:
        config: what all runs share; its method and recompute are replaced by each contender's.
        dataset: trained on its training split, accuracy and loss on its test split after the last epoch, which selects nothing.
        contenders: the methods; see :func:`trainable`.
        seeds: how many runs of each; the first has the seed `config.seed`.
        rounds: interleaved rounds of the timing.
        progress: told what is going on.
        keep: given the figures so far, after each run.

    Raises:
        BadInput: a method that the network or data cannot be trained with.
        RunFailed: what is measured before the first run does not fit into memory.
    """
    configs = {contender.label: _own(config, contender) for contender in contenders}
    progress("measuring memory and time per step", 0)
    with told():
        baseline, costs = _costs(configs, dataset, config, rounds)
    every = tuple(range(config.seed, config.seed + seeds))
    comparison = Comparison(baseline, (), config, every, runs_left=len(configs) * seeds)
    for label, own in configs.items():
        outcomes, before = list[Score | str](), comparison.rows
        for i, seed in enumerate(every):
            run = f"{label}, seed {i + 1} of {seeds}"
            outcomes.append(_outcome(run, replace(own, seed=seed), dataset, progress))
            rows = (*before, _row(label, outcomes, costs[label], baseline))
            comparison = replace(comparison, rows=rows, runs_left=comparison.runs_left - 1)
            keep(comparison)
    return comparison


def trainable(config: Config, dataset: Dataset, contenders: Sequence[Contender]) -> tuple[list[Contender], list[str]]:
    """The methods that the network and data can be trained with, and why they cannot with the others.

    Args:
        config: what all runs share.
        dataset: the data.
        contenders: the methods.

    Example:
        >>> fit, problems = trainable(config, dataset, [Contender.parse("greedy()"), Contender.parse("contsup()")])
    """
    return suited(contenders, lambda contender: build(_own(config, contender), dataset))


def _own(config: Config, contender: Contender) -> Config:
    return replace(config, method=contender.method, recompute=contender.recompute)


@contextmanager
def told() -> Iterator[None]:
    """What torch refuses on the way (memory, above all) fails the run in one sentence.

    Raises:
        RunFailed: instead of torch's own errors.

    Example:
        >>> with told():
        ...     raise MemoryError("There is no more.")
        Traceback (most recent call last):
        localprop.errors.RunFailed: There is no more. (a smaller model or batch may fit)
    """
    try:
        yield
    except (StepFailed, RunFailed):
        raise
    except (RuntimeError, MemoryError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RunFailed(f"{reason[0]} (a smaller model or batch may fit)") from error


def _outcome(run: str, config: Config, dataset: Dataset, progress: Progress) -> Score | str:
    """The score of a run, or why it has failed."""
    progress(run, 0)
    try:
        with told():
            return _score(config, dataset, partial(progress, run, 1))
    except (StepFailed, RunFailed) as error:
        return f"{run}: {error}"


def _score(config: Config, dataset: Dataset, on_epoch: Callable[[], object]) -> Score:
    learner = build(config, dataset)
    train(learner, dataset, config, on_epoch=lambda report: on_epoch())
    return test_score(learner, dataset, config)


@dataclass(frozen=True)
class _Costs:
    modules: int
    peak_bytes: int
    timing: Timing
    flops: int
    head_parameters: int
    context_parameters: int


def _costs(
    configs: dict[str, Config], dataset: Dataset, config: Config, rounds: int
) -> tuple[dict[str, Any], dict[str, _Costs]]:
    learners = {label: build(own, dataset) for label, own in configs.items()}
    any_learner = next(iter(learners.values()))
    batch = _first_batch(dataset, config, any_learner.device)
    plain = _plain(config, dataset, batch)
    steps = {_PLAIN: plain.step, **{label: _stepping(learner, batch) for label, learner in learners.items()}}
    flops = {label: learner.flops(batch) for label, learner in learners.items()}
    for step in steps.values():
        step()
    peaks = {label: peak_bytes(learner, batch) for label, learner in learners.items()}
    baseline = {"method": _PLAIN, "peak_bytes": plain.peak_bytes(), "flops": plain.flops()}
    timings = interleaved(steps, _PLAIN, rounds, any_learner.device)
    baseline["step_seconds"] = timings[_PLAIN].seconds
    return baseline, {
        label: _Costs(
            modules=learner.wiring.table.effective_modules,
            peak_bytes=peaks[label],
            timing=timings[label],
            flops=flops[label],
            head_parameters=sum(p.numel() for p in learner.heads.parameters()),
            context_parameters=sum(p.numel() for p in learner.encoders.parameters()),
        )
        for label, learner in learners.items()
    }


def _first_batch(dataset: Dataset, config: Config, device: torch.device) -> Batch:
    """A batch alone: a data set that is kept on the device would be counted among a step's memory."""
    batches = Batches(dataset, "train", config.batch_size, shuffle=True, seed=config.seed, device=device)
    return Batch(*next(batches.epoch(0)))


def _plain(config: Config, dataset: Dataset, batch: Batch) -> PlainLoop:
    model = build(config, dataset).model
    return PlainLoop(model, optimizer_of(config)(list(model.parameters())), batch, config.label_smoothing)


def _stepping(learner: Learner, batch: Batch) -> Callable[[], object]:
    return lambda: learner.step(batch)


def _row(label: str, outcomes: Sequence[Score | str], costs: _Costs, baseline: dict[str, Any]) -> Row:
    accuracies = tuple(None if isinstance(outcome, str) else 100 * outcome.accuracy for outcome in outcomes)
    losses = tuple(None if isinstance(outcome, str) else outcome.loss for outcome in outcomes)
    (accuracy_mean, accuracy_std), (loss_mean, loss_std) = _mean_and_std(accuracies), _mean_and_std(losses)
    return Row(
        method=label,
        modules=costs.modules,
        accuracy_mean=accuracy_mean,
        accuracy_std=accuracy_std,
        accuracies=accuracies,
        loss_mean=loss_mean,
        loss_std=loss_std,
        losses=losses,
        failures=tuple(outcome for outcome in outcomes if isinstance(outcome, str)),
        peak_bytes=costs.peak_bytes,
        peak_ratio=costs.peak_bytes / baseline["peak_bytes"],
        step_ratio=costs.timing.ratio,
        step_ratio_low=costs.timing.low,
        step_ratio_high=costs.timing.high,
        flops_ratio=costs.flops / baseline["flops"],
        head_parameters=costs.head_parameters,
        context_parameters=costs.context_parameters,
    )


def _mean_and_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Neither if a run has failed, since a mean of those that went well would flatter; one run has no deviation."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None
