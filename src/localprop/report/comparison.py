"""The figures of a comparison of methods, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from localprop.data import is_text
from localprop.report.costs import BaselineCosts, MethodCosts
from localprop.training.config import Config
from localprop.training.trainer import Score
from localprop.writing.tables import MIB, format_table

# The result of a run: its score, or one sentence that says why it failed.
Outcome = Score | str

DIGITS_NOTE = (
    "The digits are easy: the methods score close to each other, and a few test images decide the "
    "order. For the same table on your own data use --data FILE.npz --model ... --epochs ... ."
)


@dataclass(frozen=True)
class ComparisonRow:
    """The figures of one method.

    Means and standard deviations are None if a run has failed: a mean of the remaining runs would
    flatter the method. A standard deviation is also None if there is only one seed.

    Attributes:
        method: its label.
        modules: modules that learn independently; neighbours with the same credit count as one.
        accuracy_mean: test accuracy after the last epoch, mean over the seeds, in percent.
        accuracy_std: its standard deviation over the seeds, in points.
        accuracies: of each seed; None for a failed run.
        loss_mean: mean cross-entropy on the test split after the last epoch, in nats per label.
        loss_std: its standard deviation over the seeds.
        losses: of each seed; None for a failed run.
        failures: one sentence for each failed run.
        peak_bytes: measured peak of a training step.
        peak_ratio: its ratio to the plain PyTorch loop's.
        step_ratio: seconds per step relative to the plain PyTorch loop's; the median of
            interleaved rounds.
        step_ratio_low: the lower quartile of step_ratio.
        step_ratio_high: the upper quartile of step_ratio.
        flops_ratio: operations per step relative to the plain PyTorch loop's.
        head_parameters: of all auxiliary networks.
        context_parameters: of all encoders, which belong to the deployed network.
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
    """The rows of a comparison, and the costs of the baseline.

    Attributes:
        baseline: the plain PyTorch loop's costs.
        rows: in the order of the methods.
        config: what all runs share.
        seeds: of the runs.
        runs_left: the number of unfinished runs. While it is not 0, rows, or the last seeds of the
            last row, are missing.
    """

    baseline: BaselineCosts
    rows: tuple[ComparisonRow, ...]
    config: Config
    seeds: tuple[int, ...]
    runs_left: int

    def as_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "baseline": asdict(self.baseline),
            "rows": [asdict(row) for row in self.rows],
            "config": self.config.as_json(),
            "seeds": list(self.seeds),
            "runs_left": self.runs_left,
        }


def make_row(
    label: str, outcomes: Sequence[Outcome], costs: MethodCosts, baseline: BaselineCosts
) -> ComparisonRow:
    """Make the row of a method from the outcomes of its runs so far."""
    scores = [None if isinstance(outcome, str) else outcome for outcome in outcomes]
    accuracies = tuple(None if score is None else 100 * score.accuracy for score in scores)
    losses = tuple(None if score is None else score.loss for score in scores)
    accuracy_mean, accuracy_std = _find_mean_and_std(accuracies)
    loss_mean, loss_std = _find_mean_and_std(losses)
    return ComparisonRow(
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
        peak_ratio=costs.peak_bytes / baseline.peak_bytes,
        step_ratio=costs.timing.ratio,
        step_ratio_low=costs.timing.low,
        step_ratio_high=costs.timing.high,
        flops_ratio=costs.flops / baseline.flops,
        head_parameters=costs.head_parameters,
        context_parameters=costs.context_parameters,
    )


def _find_mean_and_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None


# --- the table ------------------------------------------------------------------------------------

_IMAGE_COLUMNS = ("accuracy %", "gap")
_TEXT_COLUMNS = ("bits/byte", "gap", "next byte %")
_COST_COLUMNS = ("peak MiB", "peak", "step time", "FLOPs", "heads", "context")


def format_comparison(comparison: Comparison) -> str:
    """Format the table of `localprop compare`, its legend, and failed or unfinished runs."""
    text = is_text(comparison.config.data)
    header = ["method", "modules", *(_TEXT_COLUMNS if text else _IMAGE_COLUMNS), *_COST_COLUMNS]
    seeds = len(comparison.seeds)
    rows = [_format_cells(row, comparison.rows[0], text, seeds) for row in comparison.rows]
    lines = [format_table(header, rows), "", *_format_legend(comparison, text)]
    for row in comparison.rows:
        lines += [f"Failed: {failure}" for failure in row.failures]
    if comparison.runs_left:
        lines.append(f"Unfinished runs: {comparison.runs_left}.")
    if comparison.config.data == "digits":
        lines.append(DIGITS_NOTE)
    return "\n".join(lines)


def _format_legend(comparison: Comparison, text: bool) -> list[str]:
    config, baseline, seeds = comparison.config, comparison.baseline, len(comparison.seeds)
    if text:
        figures = (
            "next byte: fraction of bytes predicted correctly; "
            "bits/byte: cross-entropy on the test text after the last epoch"
        )
    else:
        figures = "accuracy: on the test images after the last epoch"
    spread = f"mean +- standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    gap = "difference from the first row" + ("" if text else ", in points")
    return [
        f"{config.model} on {config.data}, {config.epochs} epochs, batch {config.batch_size}. "
        f"{figures}, {spread}; gap: {gap}.",
        "peak: measured bytes of a training step, and their ratio to the plain PyTorch loop's "
        f"({baseline.peak_bytes / MIB:.1f} MiB); step time, FLOPs: ratios to that loop's "
        f"({1000 * baseline.step_seconds:.1f} ms), time with quartiles of interleaved rounds; "
        "heads, context: parameters of auxiliary networks (dropped after training) and encoders "
        "(deployed).",
    ]


def _format_cells(row: ComparisonRow, first: ComparisonRow, text: bool, seeds: int) -> list[str]:
    finished = len(row.accuracies)
    return [
        row.method if finished == seeds else f"{row.method}, {finished} of {seeds} seeds",
        str(row.modules),
        *_format_scores(row, first, text, seeds),
        f"{row.peak_bytes / MIB:.1f}",
        f"{100 * row.peak_ratio:.0f}%",
        f"{row.step_ratio:.2f} ({row.step_ratio_low:.2f}-{row.step_ratio_high:.2f})",
        f"{row.flops_ratio:.2f}",
        f"{row.head_parameters:,}",
        f"{row.context_parameters:,}",
    ]


def _format_scores(row: ComparisonRow, first: ComparisonRow, text: bool, seeds: int) -> list[str]:
    accuracy = _format_spread(row.accuracy_mean, row.accuracy_std, digits=2)
    if row.failures:
        accuracy = f"{len(row.failures)} of {seeds} failed"
    if not text:
        return [accuracy, _format_gap(row.accuracy_mean, first.accuracy_mean, digits=2)]
    mean, std, base = (
        _convert_to_bits(loss) for loss in (row.loss_mean, row.loss_std, first.loss_mean)
    )
    return [_format_spread(mean, std, digits=3), _format_gap(mean, base, digits=3), accuracy]


def _convert_to_bits(loss: float | None) -> float | None:
    return None if loss is None else Score(0.0, loss).bits


def _format_spread(mean: float | None, std: float | None, *, digits: int) -> str:
    figures = [f"{figure:.{digits}f}" for figure in (mean, std) if figure is not None]
    return " +- ".join(figures) or "-"


def _format_gap(mean: float | None, base: float | None, *, digits: int) -> str:
    return "-" if mean is None or base is None else f"{mean - base:+.{digits}f}"
