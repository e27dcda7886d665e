"""Methods side by side on one network and data set: what `localprop compare` runs and prints."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from localprop.data import Batches, Dataset
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
        accuracy_mean: test accuracy after the last epoch, mean over the seeds, in percent.
        accuracy_std: its standard deviation over the seeds, in points.
        accuracies: of each seed.
        loss_mean: mean cross-entropy on the test split after the last epoch, in nats per label, mean over the seeds.
        loss_std: its standard deviation over the seeds.
        losses: of each seed.
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
    accuracy_mean: float
    accuracy_std: float
    accuracies: tuple[float, ...]
    loss_mean: float
    loss_std: float
    losses: tuple[float, ...]
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
    """

    baseline: dict[str, Any]
    rows: tuple[Row, ...]
    config: Config
    seeds: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "baseline": self.baseline,
            "rows": [asdict(row) for row in self.rows],
            "config": asdict(self.config),
            "seeds": list(self.seeds),
        }


def compare(
    config: Config,
    dataset: Dataset,
    contenders: Sequence[Contender],
    *,
    seeds: int = 3,
    rounds: int = 15,
    progress: Progress = lambda what, epochs: None,
) -> Comparison:
    """Train every contender with every seed, and measure what a step of each costs.

    Args:
        config: what all runs share; its method and recompute are replaced by each contender's.
        dataset: trained on its training split, accuracy and loss on its test split after the last epoch, which selects nothing.
        contenders: the methods; see :func:`trainable`.
        seeds: how many runs of each; the first has the seed `config.seed`.
        rounds: interleaved rounds of the timing.
        progress: told what is going on.

    Raises:
        BadInput: a method that the network or data cannot be trained with.
        RunFailed: a loss that is not finite.
    """
    configs = {contender.label: _own(config, contender) for contender in contenders}
    progress("measuring memory and time per step", 0)
    baseline, costs = _costs(configs, dataset, config, rounds)
    rows = []
    for label, own in configs.items():
        scores = []
        for i in range(seeds):
            done = partial(progress, f"{label}, seed {i + 1} of {seeds}", 1)
            scores.append(_score(replace(own, seed=config.seed + i), dataset, done))
        rows.append(_row(label, scores, costs[label], baseline))
    return Comparison(baseline, tuple(rows), config, tuple(range(config.seed, config.seed + seeds)))


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


def _row(label: str, scores: list[Score], costs: _Costs, baseline: dict[str, Any]) -> Row:
    accuracies, losses = tuple(100 * score.accuracy for score in scores), tuple(score.loss for score in scores)
    return Row(
        method=label,
        modules=costs.modules,
        accuracy_mean=statistics.mean(accuracies),
        accuracy_std=_deviation(accuracies),
        accuracies=accuracies,
        loss_mean=statistics.mean(losses),
        loss_std=_deviation(losses),
        losses=losses,
        peak_bytes=costs.peak_bytes,
        peak_ratio=costs.peak_bytes / baseline["peak_bytes"],
        step_ratio=costs.timing.ratio,
        step_ratio_low=costs.timing.low,
        step_ratio_high=costs.timing.high,
        flops_ratio=costs.flops / baseline["flops"],
        head_parameters=costs.head_parameters,
        context_parameters=costs.context_parameters,
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
