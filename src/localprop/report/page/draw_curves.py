"""Draw lines over epochs, modules or layers: of each method, or of each module of a method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from localprop.report.page.draw_front import SIZE, prepare_axes
from localprop.report.page.palette import LINES, MARKERS, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A label takes this share of the height of a chart.
_LABEL_HEIGHT = 0.055


class Curve(NamedTuple):
    """A line of a chart.

    Attributes:
        number: of the method or module, which chooses its marker and line.
        label: at its end, unlike all others.
        epochs: from 1; or modules or layers, from 0.
        values: one for each epoch.
    """

    number: int
    label: str
    epochs: Sequence[int]
    values: Sequence[float]


def average(number: int, label: str, runs: Sequence[Sequence[tuple[int, float]]]) -> Curve:
    """The mean over runs of what each has at an epoch.

    Example:
        >>> average(0, "a", [[(1, 2.0), (2, 3.0)], [(1, 4.0)]]).values
        [3.0, 3.0]
    """
    by_epoch: dict[int, list[float]] = {}
    for run in runs:
        for epoch, value in run:
            by_epoch.setdefault(epoch, []).append(value)
    epochs = sorted(by_epoch)
    return Curve(number, label, epochs, [statistics.mean(by_epoch[epoch]) for epoch in epochs])


def draw_curves(
    curves: Sequence[Curve], palette: Palette, *, quality: str, along: str = "epoch"
) -> Figure:
    """Draw lines over epochs, modules or layers. Each has its own colour, marker and style.

    Args:
        curves: the lines, each with its label at its end.
        palette: the colours.
        quality: the label of the axis.
        along: what the lines go over.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE, layout="constrained")
    axes: Axes = figure.subplots()
    prepare_axes(axes, palette)
    for curve in curves:
        axes.plot(
            curve.epochs,
            curve.values,
            color=palette.of_method(curve.number),
            linestyle=LINES[curve.number % len(LINES)],
            linewidth=1.5,
            marker=MARKERS[curve.number % len(MARKERS)],
            markevery=max(1, len(curve.epochs) // 8),
            markersize=5,
            markerfacecolor=palette.ground,
            markeredgewidth=1.2,
        )
    axes.margins(0.03, 0.08)
    _label_ends(axes, curves, palette)
    locator: Any = MaxNLocator(integer=True)
    axes.xaxis.set_major_locator(locator)
    axes.set_xlabel(along)
    axes.set_ylabel(quality)
    return figure


def _label_ends(axes: Axes, curves: Sequence[Curve], palette: Palette) -> None:
    """Write the label of each line where it ends, and move labels apart that would overlap."""
    low, high = axes.get_ylim()
    ends = {curve.label: (curve.values[-1] - low) / (high - low) for curve in curves}
    for label, height in spread(ends).items():
        axes.annotate(
            label,
            (1, height),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=palette.ink,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def spread(heights: Mapping[Any, float]) -> dict[Any, float]:
    """Move heights in 0..1 apart, so that labels there do not overlap; their order stays.

    Example:
        >>> spread({"a": 0.5, "b": 0.5}) == {"a": 0.5, "b": 0.5 + _LABEL_HEIGHT}
        True
    """
    placed: dict[Any, float] = {}
    lowest = 0.0
    for label, height in sorted(heights.items(), key=lambda entry: entry[1]):
        placed[label] = max(height, lowest)
        lowest = placed[label] + _LABEL_HEIGHT
    too_high = max(0.0, lowest - _LABEL_HEIGHT - 1.0)
    return {label: height - too_high for label, height in placed.items()} if too_high else placed
