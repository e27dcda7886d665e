"""What the modules of a group's methods have learned: the charts and tables of analyses."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from localprop.report.page.draw_curves import Curve, average, draw_curves
from localprop.report.page.draw_similarity import draw_similarity
from localprop.report.page.palette import NAMED
from localprop.report.page.results import Group, Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Json = Mapping[str, Any]


class Learned(NamedTuple):
    """A chart of what modules have learned, and its figures.

    Attributes:
        name: of letters, digits and dashes.
        caption: above the table, below the chart.
        title: what is seen, in words.
        figure: the chart.
        header: of the table.
        rows: of the table, in texts.
    """

    name: str
    caption: str
    title: str
    figure: Figure
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def list_learned(group: Group) -> Iterator[Learned]:
    """The charts of probes, gradients and similarities; none where no run was analysed."""
    probes = [each["probe"] for m in group.methods for each in _read(m, "probe")]
    measures = dict.fromkeys(each["measure"] for each in probes)
    for measure in measures:
        unit = "%" if measure == "accuracy" else ""
        factor = 100 if measure == "accuracy" else 1
        yield from _draw_lines(
            group,
            "probes",
            f"Linear probes: {measure} by module",
            ("probe " + measure, unit),
            "module",
            lambda analysis, factor=factor, measure=measure: (  # type: ignore[misc]
                [factor * score for score in analysis["probe"]["scores"]]
                if (analysis["probe"] or {}).get("measure") == measure
                else []
            ),
        )
    yield from _draw_lines(
        group,
        "gradients",
        "Gradients: cosine with the end-to-end gradient, by layer",
        ("cosine", ""),
        "layer",
        lambda analysis: (analysis["gradients"] or {}).get("cosines", ()),
    )
    for number, method in enumerate(group.methods):
        matrices = [each["representations"]["values"] for each in _read(method, "representations")]
        if matrices:
            yield _draw_similarity(number, method, matrices)


def list_analysis_notes(group: Group) -> list[str]:
    """What an analysis could not say, and analyses that are older than their runs."""
    notes = []
    for method in group.methods:
        for run in method.runs:
            if run.analysis is None:
                continue
            notes += [f"{method.label}: {note}" for note in run.analysis["notes"]]
            if run.analysis["epochs"] != len(run.epochs):
                notes.append(
                    f"{run.path} was analysed after {run.analysis['epochs']} epochs, and has "
                    f"{len(run.epochs)}: run localprop analyse again."
                )
    return [*dict.fromkeys(notes)]


def _read(method: Method, what: str) -> Iterator[Json]:
    """The analyses of a method's runs that have something."""
    for run in method.runs:
        if run.analysis is not None and run.analysis[what] is not None:
            yield run.analysis


def _draw_lines(
    group: Group,
    name: str,
    caption: str,
    axis: tuple[str, str],
    along: str,
    read: Callable[[Json], Iterable[float | None]],
) -> Iterator[Learned]:
    """Lines of all methods over modules or layers, means over seeds, if there are any."""
    curves = [
        average(
            number,
            method.letter,
            [
                [(place, v) for place, v in enumerate(read(run.analysis)) if v is not None]
                for run in method.runs
                if run.analysis is not None
            ],
        )
        for number, method in enumerate(group.methods)
    ]
    curves = [curve for curve in curves if curve.epochs]
    if not curves:
        return
    what, unit = axis
    ends = "; ".join(
        f"{group.methods[curve.number].label}: {_list_values(curve)}" for curve in curves
    )
    yield Learned(
        name,
        caption,
        f"{what.capitalize()} of each {along}, from the first to the last. {ends}.",
        draw_curves(curves, NAMED, quality=f"{what}, {unit}" if unit else what, along=along),
        (along, *(group.methods[curve.number].label for curve in curves)),
        tuple(_list_rows(curves)),
    )


def _list_values(curve: Curve) -> str:
    return ", ".join(f"{value:.2f}" for value in curve.values)


def _list_rows(curves: Sequence[Curve]) -> Iterator[tuple[str, ...]]:
    columns = [dict(zip(curve.epochs, curve.values, strict=True)) for curve in curves]
    for place in sorted({place for column in columns for place in column}):
        cells = [f"{column[place]:.2f}" if place in column else "–" for column in columns]
        yield str(place), *cells


def _draw_similarity(
    number: int, method: Method, matrices: Sequence[Sequence[Sequence[float | None]]]
) -> Learned:
    """The mean over seeds."""
    values = [
        [_mean(cells) for cells in zip(*own, strict=True)] for own in zip(*matrices, strict=True)
    ]
    described = "; ".join(
        f"module {row}: {', '.join(_show(each) for each in own)}" for row, own in enumerate(values)
    )
    return Learned(
        f"similarity-{number}",
        f"{method.letter}  {method.label}: similarity to the end-to-end network (CKA)",
        f"CKA of each module of {method.label} with each of the end-to-end network. {described}.",
        draw_similarity(values, NAMED),
        ("module", *(str(column) for column in range(len(values[0])))),
        tuple((str(row), *map(_show, own)) for row, own in enumerate(values)),
    )


def _mean(cells: Sequence[float | None]) -> float | None:
    known = [cell for cell in cells if cell is not None]
    return statistics.mean(known) if known else None


def _show(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
