"""The ways of a plan as a chart: bytes against time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from localprop.planning.candidates import Way, keep_front
from localprop.planning.sizes import format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Both differ from method to method, so that the chart reads without colours.
_MARKERS = "osD^vP*X<>hp"
_LINES = ("-", "--", "-.", ":")


def draw_front(
    ways: Sequence[Way], front: Sequence[Way], budget: int | None, best: Way | None
) -> Figure:
    """Draw the front of each method, whole and in micro-batches, and that of all.

    Args:
        ways: all ways, the plain loop first.
        front: those to which no other is equal or better, in the order of bytes.
        budget: in bytes, a vertical line.
        best: the way that is taken, which is marked.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes: Axes = figure.subplots()
    unit = 1e9 if max(way.peak_bytes for way in ways) >= 1e9 else 1e6
    axes.step(
        [way.peak_bytes / unit for way in front],
        [way.time for way in front],
        where="post",
        color="0.75",
        linewidth=5,
        label="least time within so many bytes",
    )
    for number, kind in enumerate(dict.fromkeys(map(_kind_of, ways))):
        own = keep_front(way for way in ways if _kind_of(way) == kind)
        axes.plot(
            [way.peak_bytes / unit for way in own],
            [way.time for way in own],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle=_LINES[number % len(_LINES)],
            fillstyle="none",
            label=kind,
        )
    if budget is not None:
        axes.axvline(budget / unit, color="black", linestyle="--")
        text = f"budget {format_size(budget)}"
        transform = axes.get_xaxis_transform()
        axes.text(budget / unit, 1.01, text, transform=transform, ha="center", va="bottom")
    axes.set_xlim(0, 1.05 * axes.get_xlim()[1])
    for name, way in (("plain loop", ways[0]), ("taken", best)):
        if way is not None:
            _point_at(axes, way, name, unit)
    axes.margins(y=0.15)
    axes.set_xlabel(f"peak of a step, {'GB' if unit == 1e9 else 'MB'}")
    axes.set_ylabel("operations, as a multiple of the plain loop's")
    axes.legend(fontsize="small")
    return figure


def _kind_of(way: Way) -> str:
    if way.offload:
        return f"{way.method}, offload: operations alone"
    if way.microbatches > 1:
        return f"{way.method}, in micro-batches"
    return f"{way.method}, nested recompute" if way.rerun == "nested" else way.method


def _point_at(axes: Axes, way: Way, name: str, unit: float) -> None:
    x = way.peak_bytes / unit
    axes.plot(x, way.time, marker="o", markersize=16, fillstyle="none", color="black")
    is_left = x < axes.get_xlim()[1] / 2
    axes.annotate(
        name if name == "plain loop" else f"{name}: {way}",
        (x, way.time),
        xytext=(12 if is_left else -12, 10 if name == "plain loop" else -16),
        textcoords="offset points",
        ha="left" if is_left else "right",
        fontsize="small",
    )
