"""The figures of a comparison of methods, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from localprop.data import is_text
from localprop.report.costs import BaselineCosts, MethodCosts
from localprop.report.paired import Difference, compare_pairs
from localprop.training.config import Config
from localprop.training.scores import Score
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
            "rows": [
                {**asdict(row), "gap": None if gap is None else asdict(gap)}
                for row, gap in zip(self.rows, self.find_gaps(), strict=True)
            ],
            "config": self.config.as_json(),
            "seeds": list(self.seeds),
            "runs_left": self.runs_left,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Comparison:
        """Read what `as_json` has made, also before it had losses and gaps."""
        older = {"loss_mean": None, "loss_std": None, "losses": (), "failures": ()}
        known = [field.name for field in fields(ComparisonRow)]
        rows = tuple(
            ComparisonRow(**{**older, **{key: row[key] for key in known if key in row}})
            for row in values["rows"]
        )
        return cls(
            BaselineCosts(**values["baseline"]),
            rows,
            Config(**values["config"]),
            tuple(values["seeds"]),
            values.get("runs_left", 0),
        )

    @property
    def is_of_text(self) -> bool:
        """Whether bits per byte count, and not accuracies."""
        return is_text(self.config.data)

    def find_gaps(self) -> list[Difference | None]:
        """The difference of each row from the first, seed by seed; None for the first itself.

        In points of accuracy; of text in bits per byte, where less is better.
        """
        figures = [
            [_convert_to_bits(loss) for loss in row.losses] if self.is_of_text else row.accuracies
            for row in self.rows
        ]
        return [
            compare_pairs(own, figures[0], larger_is_better=not self.is_of_text) if number else None
            for number, own in enumerate(figures)
        ]


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

_COST_COLUMNS = ("peak MiB", "peak", "step time", "FLOPs", "heads", "context")


def format_comparison(comparison: Comparison) -> str:
    """Format the table of `localprop compare`, its legend, and failed or unfinished runs."""
    lines = [format_table(*make_cells(comparison)), "", *_format_legend(comparison)]
    for row in comparison.rows:
        lines += [f"Failed: {failure}" for failure in row.failures]
    if comparison.runs_left:
        lines.append(f"Unfinished runs: {comparison.runs_left}.")
    if comparison.config.data == "digits":
        lines.append(DIGITS_NOTE)
    return "\n".join(lines)


def make_cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Make the header and the rows of the table, as texts."""
    seeds = len(comparison.seeds)
    gap = "gap (95 %)" if seeds > 1 else "gap"
    columns = ["bits/byte", gap, "next byte %"] if comparison.is_of_text else ["accuracy %", gap]
    rows = [
        _format_cells(row, gap, comparison.is_of_text, seeds)
        for row, gap in zip(comparison.rows, comparison.find_gaps(), strict=True)
    ]
    return ["method", "modules", *columns, *_COST_COLUMNS], rows


def _format_legend(comparison: Comparison) -> list[str]:
    config, baseline, seeds = comparison.config, comparison.baseline, len(comparison.seeds)
    if comparison.is_of_text:
        figures = (
            "next byte: fraction of bytes predicted correctly; "
            "bits/byte: cross-entropy on the test text after the last epoch"
        )
    else:
        figures = "accuracy: on the test images after the last epoch"
    spread, interval = "one seed", ""
    if seeds > 1:
        spread = f"mean +- standard deviation of {seeds} seeds"
        interval = (
            ", with the 95 % interval of the mean difference of equal seeds (paired t), and better "
            "or worse where that leaves zero out"
        )
    points = "" if comparison.is_of_text else ", in points"
    return [
        f"{config.model} on {config.data}, {config.epochs} epochs, batch {config.batch_size}. "
        f"{figures}, {spread}; gap: difference from the first row{points}{interval}.",
        "peak: measured bytes of a training step, and their ratio to the plain PyTorch loop's "
        f"({baseline.peak_bytes / MIB:.1f} MiB); step time, FLOPs: ratios to that loop's "
        f"({1000 * baseline.step_seconds:.1f} ms), time with quartiles of interleaved rounds; "
        "heads, context: parameters of auxiliary networks (dropped after training) and encoders "
        "(deployed).",
    ]


def _format_cells(row: ComparisonRow, gap: Difference | None, text: bool, seeds: int) -> list[str]:
    finished = len(row.accuracies)
    return [
        row.method if finished == seeds else f"{row.method}, {finished} of {seeds} seeds",
        str(row.modules),
        *_format_scores(row, gap, text, seeds),
        f"{row.peak_bytes / MIB:.1f}",
        f"{100 * row.peak_ratio:.0f}%",
        f"{row.step_ratio:.2f} ({row.step_ratio_low:.2f}-{row.step_ratio_high:.2f})",
        f"{row.flops_ratio:.2f}",
        f"{row.head_parameters:,}",
        f"{row.context_parameters:,}",
    ]


def _format_scores(row: ComparisonRow, gap: Difference | None, text: bool, seeds: int) -> list[str]:
    accuracy = _format_spread(row.accuracy_mean, row.accuracy_std, digits=2)
    if row.failures:
        accuracy = f"{len(row.failures)} of {seeds} failed"
    if not text:
        return [accuracy, format_gap(gap, digits=2)]
    mean, std = (_convert_to_bits(loss) for loss in (row.loss_mean, row.loss_std))
    return [_format_spread(mean, std, digits=3), format_gap(gap, digits=3), accuracy]


def format_gap(gap: Difference | None, *, digits: int) -> str:
    """Format a difference, with its interval and what that says.

    Example:
        >>> format_gap(Difference(-3.0, -4.5, -1.5, "worse"), digits=1)
        '-3.0 (-4.5..-1.5) worse'
    """
    if gap is None:
        return "-"
    mean = f"{gap.mean:+.{digits}f}"
    if gap.low is None or gap.high is None or gap.low == gap.high == 0:
        return mean
    return f"{mean} ({gap.low:+.{digits}f}..{gap.high:+.{digits}f}) {gap.verdict}".rstrip()


def _convert_to_bits(loss: float | None) -> float | None:
    return None if loss is None else Score(0.0, loss).bits


def _format_spread(mean: float | None, std: float | None, *, digits: int) -> str:
    figures = [f"{figure:.{digits}f}" for figure in (mean, std) if figure is not None]
    return " +- ".join(figures) or "-"
