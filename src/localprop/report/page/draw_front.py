"""Draw quality against a cost, with the line of methods that no other beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from localprop.report.page.front import Point, find_front
from localprop.report.page.palette import LINES, MARKERS, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (5.2, 3.7)  # inches; narrow, so that text stays readable on a phone


def draw_front(
    points: Sequence[Point],
    spreads: Mapping[int, float],
    letters: Sequence[str],
    palette: Palette,
    *,
    cost: str,
    quality: str,
    larger_is_better: bool,
    reference: float | None = None,
    labels: Sequence[str] = (),
) -> Figure:
    """Draw methods in the plane of a cost and the quality.

    Args:
        points: the methods.
        spreads: standard deviations of their qualities, by number.
        letters: that stand for the methods.
        palette: the colours.
        cost: the label of the axis.
        quality: likewise.
        larger_is_better: whether more of it is better; the axis is turned otherwise, so that up is
            better in any case.
        reference: the cost of the plain loop, a vertical line.
        labels: names of the methods, for a legend where the chart stands alone.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=SIZE, layout="constrained")
    axes: Axes = figure.subplots()
    prepare_axes(axes, palette)
    front = find_front(points, larger_is_better=larger_is_better)
    axes.step(
        [point.cost for point in front],
        [point.quality for point in front],
        where="post",
        color=palette.accent,
        linewidth=1.6,
        alpha=0.75,
        zorder=1,
    )
    if reference is not None:
        axes.axvline(reference, color=palette.muted, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    ahead = {point.number for point in front}
    for point in points:
        colour = palette.of_method(point.number)
        axes.errorbar(
            point.cost,
            point.quality,
            yerr=spreads.get(point.number),
            marker=MARKERS[point.number % len(MARKERS)],
            markersize=8,
            markerfacecolor=colour if point.number in ahead else palette.ground,
            markeredgecolor=colour,
            markeredgewidth=1.5,
            ecolor=colour,
            elinewidth=0.9,
            linestyle="none",
            zorder=3,
        )
        axes.annotate(
            letters[point.number],
            (point.cost, point.quality),
            xytext=(7, 5),
            textcoords="offset points",
            color=palette.ink,
            fontsize=10,
            fontweight="bold",
            zorder=4,
        )
    axes.margins(0.12, 0.16)
    if not larger_is_better:
        axes.invert_yaxis()
    axes.set_xlabel(cost)
    axes.set_ylabel(quality)
    if labels:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.22 * len(labels))
        names = [f"{letter}  {label}" for letter, label in zip(letters, labels, strict=True)]
        handles = [
            Line2D(
                [], [], linestyle="none", marker=MARKERS[number % len(MARKERS)], markersize=7,
                markeredgewidth=1.5, markerfacecolor=palette.ground,
                markeredgecolor=palette.of_method(number),
            )
            for number in range(len(labels))
        ]  # fmt: skip
        figure.legend(handles, names, loc="outside lower left", frameon=False, fontsize=9)
    return figure


def prepare_axes(axes: Any, palette: Palette) -> None:
    """Give axes the look of the page: two spines, a faint grid, text in its colour."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(palette.line)
    axes.set_facecolor("none")
    axes.grid(True, color=palette.line, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=palette.muted, labelsize=9, length=3)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(palette.ink)
        label.set_fontsize(10)


def draw_swatch(number: int, palette: Palette) -> Figure:
    """Draw the line and the marker of a method, for a legend in the text."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(0.46, 0.2))
    figure.add_artist(
        Line2D(
            [0.04, 0.5, 0.96],
            [0.5, 0.5, 0.5],
            color=palette.of_method(number),
            linestyle=LINES[number % len(LINES)],
            linewidth=1.5,
            marker=MARKERS[number % len(MARKERS)],
            markevery=[1],
            markersize=7,
            markerfacecolor=palette.ground,
            markeredgewidth=1.5,
        )
    )
    return figure
