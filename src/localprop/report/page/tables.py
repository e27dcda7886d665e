"""The tables of a page, and the same as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from localprop.report.comparison import format_gap
from localprop.report.page.results import Group, Method
from localprop.writing.tables import MIB, format_table


class Cell(NamedTuple):
    """A cell of a table that sorts.

    Attributes:
        text: what is shown.
        value: what counts when rows are sorted; None for what is unknown.
    """

    text: str
    value: float | str | None = None


class Table(NamedTuple):
    """A table; its first column names the methods."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def make_table(group: Group) -> Table:
    """Make the table of a group's methods."""
    columns = _COMPARED if group.comparison else _SINGLE
    quality = "bits per byte" if group.is_of_text else "accuracy, %"
    header = [quality if name == "quality" else name for name in columns]
    rows = [
        [_make_cell(name, method, is_text=group.is_of_text) for name in columns]
        for method in group.methods
    ]
    return Table(header, rows)


_COMPARED = (
    "method",
    "quality",
    "gap (95 %)",
    "peak, MiB",
    "peak, %",
    "step time",
    "FLOPs",
    "modules",
    "heads",
    "context",
)
_SINGLE = ("method", "quality", "peak, MiB", "seconds per epoch", "epochs", "seeds")


def _make_cell(name: str, method: Method, *, is_text: bool) -> Cell:
    row, digits = method.row, 3 if is_text else 2
    match name:
        case "method":
            return Cell(method.label, method.label)
        case "quality" if method.quality is None:
            failed = len(row.failures) if row else 0
            return Cell(f"{failed} failed" if failed else "not ended")
        case "quality":
            spread = "" if method.quality_std is None else f" ± {method.quality_std:.{digits}f}"
            return Cell(f"{method.quality:.{digits}f}{spread}", method.quality)
        case "gap (95 %)":
            text = format_gap(method.gap, digits=digits).replace("-", "−").replace("..", " to ")
            return Cell(text, method.gap.mean) if method.gap else Cell("–")
        case "peak, MiB":
            return _number(method.peak_bytes and method.peak_bytes / MIB, ".1f")
        case "peak, %":
            return _number(method.peak_ratio and 100 * method.peak_ratio, ".0f")
        case "step time" if row:
            quartiles = f" ({row.step_ratio_low:.2f} to {row.step_ratio_high:.2f})"
            return Cell(f"{row.step_ratio:.2f}{quartiles}", row.step_ratio)
        case "seconds per epoch":
            return _number(method.time, ".1f")
        case "FLOPs":
            return _number(None if row is None else row.flops_ratio, ".2f")
        case "modules":
            return _number(None if row is None else row.modules, "d")
        case "heads":
            return _number(None if row is None else row.head_parameters, ",d")
        case "context":
            return _number(None if row is None else row.context_parameters, ",d")
        case "epochs":
            return _number(method.config.epochs, "d")
        case _:
            return _number(method.seeds, "d")


def _number(value: float | None, form: str) -> Cell:
    return Cell("–") if value is None else Cell(format(value, form), value)


# --- other formats --------------------------------------------------------------------------------


def format_markdown(groups: Iterable[Group]) -> str:
    """All tables as Markdown, with a heading each."""
    return "\n".join(_format_each(groups, format_table))


def format_latex(groups: Iterable[Group]) -> str:
    """All tables as LaTeX, which need no package."""
    return "\n".join(_format_each(groups, _format_tabular, comment="% "))


def _format_each(
    groups: Iterable[Group],
    form: Callable[[Sequence[str], Sequence[Sequence[str]]], str],
    comment: str = "## ",
) -> Iterator[str]:
    for group in groups:
        table = make_table(group)
        cells = [[cell.text for cell in row] for row in table.rows]
        config = group.config
        yield f"{comment}{config.model} on {config.data}, {config.epochs} epochs ({group.name})\n"
        yield f"{form(table.header, cells)}\n"


def _format_tabular(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\hline"]
    lines += [_format_line(header), r"\hline", *map(_format_line, rows)]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"])


_ESCAPES = {
    **{char: rf"\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
}


def _format_line(cells: Sequence[str]) -> str:
    return " & ".join("".join(_ESCAPES.get(c, c) for c in cell) for cell in cells) + r" \\"


def format_csv(groups: Iterable[Group]) -> str:
    """A line for each run, with plain numbers; what is unknown is empty."""
    names = (
        "result", "method", "seed", "test_accuracy", "test_loss", "peak_bytes", "peak_ratio",
        "step_ratio", "flops_ratio", "modules", "head_parameters", "context_parameters",
    )  # fmt: skip
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(names)
    for group in groups:
        for method in group.methods:
            writer.writerows(
                ["" if value is None else value for value in line]
                for line in _list_lines(group, method)
            )
    return content.getvalue()


def _list_lines(group: Group, method: Method) -> Iterator[list[object]]:
    row = method.row
    if row is None or group.comparison is None:
        for run in method.runs:
            summary = run.summary or {}
            scores = (summary.get("test_accuracy"), summary.get("test_loss"))
            nothing = [None] * 6
            yield [group.name, method.label, run.config.seed, *scores, method.peak_bytes, *nothing]
        return
    costs = (row.peak_bytes, row.peak_ratio, row.step_ratio, row.flops_ratio, row.modules)
    added = (row.head_parameters, row.context_parameters)
    losses = [*row.losses, *[None] * len(row.accuracies)]
    for seed, percent, loss in zip(group.comparison.seeds, row.accuracies, losses, strict=False):
        accuracy = None if percent is None else percent / 100
        yield [group.name, row.method, seed, accuracy, loss, *costs, *added]
