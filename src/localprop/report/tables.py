"""Figures as tables: Markdown in a pipe, the same in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from localprop.data import is_text
from localprop.report.bench import MemoryRow, Setting, SpeedRow
from localprop.report.compare import Comparison, Row
from localprop.training.trainer import Score

_MIB = 2**20
_IMAGE_FIGURES = ("accuracy %", "gap")
_TEXT_FIGURES = ("bits/byte", "gap", "next byte %")
Cells = Sequence[str]


def markdown(head: Cells, rows: Iterable[Cells]) -> str:
    """A Markdown table, padded so that it also reads well as text; the first column is left-aligned, the others right.

    Example:
        >>> print(markdown(["method", "MiB"], [["a", "1.0"], ["bb", "10.0"]]))
        | method |  MiB |
        |:-------|-----:|
        | a      |  1.0 |
        | bb     | 10.0 |
    """
    body = [list(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *body, strict=True)]
    rule = [f":{'-' * (widths[0] + 1)}", *(f"{'-' * (width + 1)}:" for width in widths[1:])]
    return "\n".join([_line(head, widths), f"|{'|'.join(rule)}|", *(_line(row, widths) for row in body)])


def _line(cells: Cells, widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
    return f"| {' | '.join(padded)} |"


def comparison_table(comparison: Comparison) -> str:
    """The table of `localprop compare`, with what its columns mean, and which runs have failed or are missing."""
    config, n = comparison.config, len(comparison.seeds)
    text = is_text(config.data)
    figures = _TEXT_FIGURES if text else _IMAGE_FIGURES
    head = ["method", "modules", *figures, "peak MiB", "peak", "step time", "FLOPs", "heads", "context"]
    table = markdown(head, [_cells(row, comparison.rows[0], text, n) for row in comparison.rows])
    base = comparison.baseline
    told = (
        "bits/byte: cross-entropy on the test text after the last epoch, and next byte: share of its bytes that are foretold"
        if text
        else "accuracy: on the test images after the last epoch"
    )
    seeds = f"mean +- standard deviation of {n} seeds" if n > 1 else "of one seed"
    left = [f"Runs that have not ended: {comparison.runs_left}."] if comparison.runs_left else []
    return "\n".join(
        [
            table,
            "",
            f"{config.model} on {config.data}, {config.epochs} epochs, batch {config.batch_size}. {told}, {seeds}; "
            f"gap: to the first row{'' if text else ', in points'}.",
            f"peak: measured bytes of a training step, its share of the plain PyTorch loop's ({base['peak_bytes'] / _MIB:.1f} "
            f"MiB); step time and FLOPs: ratios to that loop ({1000 * base['step_seconds']:.1f} ms), time with quartiles of "
            "interleaved rounds; heads, context: parameters of auxiliary networks (dropped) and encoders (deployed).",
            *(f"Failed: {failure}" for row in comparison.rows for failure in row.failures),
            *left,
        ]
    )


def _cells(row: Row, first: Row, text: bool, seeds: int) -> list[str]:
    failed, done = len(row.failures), len(row.accuracies)
    accuracy = f"{failed} of {seeds} failed" if failed else _spread(row.accuracy_mean, row.accuracy_std, 2)
    figures = [accuracy, _gap(row.accuracy_mean, first.accuracy_mean, 2)]
    if text:
        mean, std, base = (_bits(loss) for loss in (row.loss_mean, row.loss_std, first.loss_mean))
        figures = [_spread(mean, std, 3), _gap(mean, base, 3), accuracy]
    return [
        row.method if done == seeds else f"{row.method}, {done} of {seeds} seeds",
        str(row.modules),
        *figures,
        f"{row.peak_bytes / _MIB:.1f}",
        f"{100 * row.peak_ratio:.0f}%",
        f"{row.step_ratio:.2f} ({row.step_ratio_low:.2f}-{row.step_ratio_high:.2f})",
        f"{row.flops_ratio:.2f}",
        f"{row.head_parameters:,}",
        f"{row.context_parameters:,}",
    ]


def _bits(loss: float | None) -> float | None:
    return None if loss is None else Score(0.0, loss).bits


def _spread(mean: float | None, std: float | None, digits: int) -> str:
    figures = [f"{figure:.{digits}f}" for figure in (mean, std) if figure is not None]
    return " +- ".join(figures) or "-"


def _gap(mean: float | None, base: float | None, digits: int) -> str:
    return "-" if mean is None or base is None else f"{mean - base:+.{digits}f}"


def bench_memory_table(setting: Setting, base: int, rows: Sequence[MemoryRow]) -> str:
    """The table of `localprop bench memory`."""
    head = ["method", "peak MiB", "below the plain loop", "predicted MiB", "error"]
    cells = [
        [
            row.method,
            f"{row.peak_bytes / _MIB:.1f}",
            f"{round(100 * row.saving, 1) + 0.0:.1f}%",  # + 0.0: no -0.0
            f"{row.predicted_bytes / _MIB:.1f}",
            f"{100 * row.error:+.2f}%",
        ]
        for row in rows
    ]
    return "\n".join(
        [markdown(head, [["plain PyTorch loop", f"{base / _MIB:.1f}", "", "", ""], *cells]), "", _what(setting)]
    )


def bench_speed_table(setting: Setting, seconds: float, rows: Sequence[SpeedRow], rounds: int) -> str:
    """The table of `localprop bench speed`."""
    head = ["method", "ms per step", "ratio", "quartiles", "actions", "extra us per action"]
    cells = [
        [
            row.method,
            f"{1000 * row.timing.seconds:.1f}",
            f"{row.timing.ratio:.3f}",
            f"{row.timing.low:.3f}-{row.timing.high:.3f}",
            str(row.actions),
            f"{1e6 * (row.timing.seconds - seconds) / row.actions:.0f}",
        ]
        for row in rows
    ]
    table = markdown(head, [["plain PyTorch loop", f"{1000 * seconds:.1f}", "1", "", "", ""], *cells])
    return "\n".join([table, "", f"{_what(setting)} {rounds} interleaved rounds."])


def _what(setting: Setting) -> str:
    image = "x".join(map(str, setting.input_shape))
    size = f"{setting.modules} modules, batch {setting.batch_size} of {image}"
    return f"{setting.model}, {size}, SGD with momentum {setting.momentum:g}."
