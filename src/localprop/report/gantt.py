"""Gantt charts of pipelines: what each rank computes, and which rank it waits for."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localprop.cost.simulate import Event, Timeline, Wait
from localprop.report.bars import draw_bars
from localprop.schedule.schedule import Op
from localprop.writing.charts import check_path, write_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WEIGHT_GRADIENTS = "W gradients of weights, or a postponed half of B"
_WAITS = "waits for the rank ... (its number)"
_COLOURS = {
    "F forward": "#4c78a8",
    "L local loss": "#eeca3b",
    "B backward": "#54a24b",
    _WEIGHT_GRADIENTS: "#b7dfb0",
    "S, H steps": "#7f7f7f",
    _WAITS: "#e45756",
}
_LEGEND_OF_OPS = {
    Op.F: "F forward",
    Op.L: "L local loss",
    Op.B: "B backward",
    Op.W: _WEIGHT_GRADIENTS,
    Op.S: "S, H steps",
    Op.H: "S, H steps",
    Op.P: "S, H steps",
}
KINDS = tuple(_COLOURS)
# Kinds are told apart without colours, too.
_HATCHES = {"L local loss": "||", "B backward": "//", _WEIGHT_GRADIENTS: "\\\\"}
# Charts of more ranks have rasterised bars and no labels on waits.
_MAX_DETAILED_RANKS = 16
# A wait is labelled with the rank that it waits for if it fills this fraction of the chart's width.
_MIN_LABELLED_WIDTH = 0.02

# When a bar starts and how long it is.
Bar = tuple[float, float]


@dataclass(frozen=True)
class GanttStyle:
    """How a chart looks.

    Attributes:
        width: of the chart, in inches.
        colours: by `KINDS`.
        ink: the colour of texts.
        ground: the colour behind the bars.
        on_waits: the colour of what is written on waits.
        unit: the label of the axis of time.
        scale: units of a second.
        columns: of the legend.
    """

    width: float = 12
    colours: Mapping[str, str] = field(default_factory=lambda: _COLOURS)
    ink: str = "black"
    ground: str = "white"
    on_waits: str = "white"
    unit: str = "milliseconds"
    scale: float = 1000
    columns: int = len(_COLOURS)


def draw_gantt(timelines: Mapping[str, Timeline], path: str | Path, note: str = "") -> None:
    """Draw timelines below each other on one time scale.

    Each panel shows two batches of the steady loop, or the whole timeline if it has few batches.

    Args:
        timelines: by title.
        path: a file that ends in .html (one self-contained page), .png or .svg.
        note: printed below the chart.

    Raises:
        BadInput: for another file type or folder, or if matplotlib is not installed.
        RunFailed: the file cannot be written.

    Example:
        >>> from localprop.schedule.schedule import Action
        >>> forward = Event(0, Action(Op.F, 0), 0, 0.0, 1.0)
        >>> draw_gantt({"one forward": Timeline(1, 1, (forward,), (), {}, (0.0,))}, "chart.svg")
    """
    path = check_path(path)
    figure = draw_timelines(timelines, "" if path.suffix == ".html" else note)
    write_chart(figure, path, title="Which rank waits for which", text=note)


# --- the figure -----------------------------------------------------------------------------------


def draw_timelines(
    timelines: Mapping[str, Timeline],
    note: str = "",
    style: GanttStyle = GanttStyle(),
) -> Figure:
    """Draw timelines below each other, as `draw_gantt` does, for other files and pages.

    Args:
        timelines: by title.
        note: printed below the chart.
        style: how it looks.
    """
    from matplotlib.figure import Figure

    heights = [0.5 + min(0.25 * timeline.ranks, 4.0) for timeline in timelines.values()]
    legend = 0.2 * -(-len(KINDS) // style.columns) + 1.0
    figure = Figure(figsize=(style.width, sum(heights) + legend), layout="constrained")
    panels: Any = figure.subplots(len(timelines), 1, squeeze=False, height_ratios=heights)
    windows = [_find_window(timeline) for timeline in timelines.values()]
    # All panels have the width of the longest window, so that their lengths compare.
    width = max(end - start for start, end in windows)
    rows = zip(panels[:, 0], timelines.items(), windows, strict=True)
    for axes, (title, timeline), (start, _) in rows:
        axes.set_title(title, loc="left", fontsize="small", color=style.ink)
        axes.set_facecolor("none")
        axes.tick_params(colors=style.ink)
        for spine in axes.spines.values():
            spine.set_color(style.ink)
        _draw_bars(axes, timeline, start, width, style)
        _label_waits(axes, timeline, start, width, style)
    panels[-1, 0].set_xlabel(style.unit, color=style.ink)
    _add_legend(figure, style)
    if note:
        figure.supxlabel(textwrap.fill(note, 170), fontsize="x-small")
    return figure


def _add_legend(figure: Figure, style: GanttStyle) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=colour, edgecolor=style.ground, hatch=_HATCHES.get(kind), label=kind)
        for kind, colour in style.colours.items()
    ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=style.columns,
        frameon=False,
        fontsize="small",
        labelcolor=style.ink,
    )


def _find_window(timeline: Timeline) -> tuple[float, float]:
    """When the panel of a timeline starts and ends, in seconds."""
    if timeline.steps < 4:
        return 0.0, timeline.span_s
    middle = timeline.steps // 2
    start = min(event.start_s for event in timeline.events if event.step == middle)
    return start, start + 2 * timeline.seconds_per_step


def _draw_bars(
    axes: Axes, timeline: Timeline, start: float, width: float, style: GanttStyle
) -> None:
    axes.set_xlim(0, style.scale * width)
    axes.set_ylim(timeline.ranks - 0.5, -0.5)
    axes.set_yticks(range(0, timeline.ranks, max(1, timeline.ranks // 8)))
    axes.set_ylabel("rank", fontsize="small", color=style.ink)
    for rank in range(timeline.ranks):
        for label, bars in _find_bars(timeline, rank, start, start + width).items():
            shape = draw_bars(
                axes,
                [(style.scale * x, rank - 0.4, style.scale * length, 0.8) for x, length in bars],
                facecolor=style.colours[label],
                edgecolor=style.ground,
                linewidth=0.2,
                hatch=_HATCHES.get(label),
            )
            # An .svg with every bar of 64 ranks as a vector would be large.
            shape.set_rasterized(timeline.ranks > _MAX_DETAILED_RANKS)


def _label_waits(
    axes: Axes, timeline: Timeline, start: float, width: float, style: GanttStyle
) -> None:
    if timeline.ranks > _MAX_DETAILED_RANKS:
        return
    for wait in timeline.waits:
        left, right = max(wait.start_s, start), min(wait.end_s, start + width)
        if right - left > _MIN_LABELLED_WIDTH * width:
            centre = style.scale * ((left + right) / 2 - start)
            # A rank that waits for itself waits for the sum of gradients over replicas.
            peer = "replicas" if wait.peer == wait.rank else str(wait.peer)
            axes.text(centre, wait.rank, peer, color=style.on_waits, ha="center", va="center")


def _find_bars(timeline: Timeline, rank: int, start: float, end: float) -> dict[str, list[Bar]]:
    """The bars of a rank between two times, by their label in the legend, relative to the start."""
    bars: dict[str, list[Bar]] = {}
    for label, item in _label_items(timeline, rank):
        left, right = max(item.start_s, start), min(item.end_s, end)
        if left < right:
            bars.setdefault(label, []).append((left - start, right - left))
    return bars


def _label_items(timeline: Timeline, rank: int) -> Iterator[tuple[str, Event | Wait]]:
    for event in timeline.events:
        if event.rank == rank:
            is_weights = event.weight_gradient
            yield _WEIGHT_GRADIENTS if is_weights else _LEGEND_OF_OPS[event.action.op], event
    for wait in timeline.waits:
        if wait.rank == rank:
            yield _WAITS, wait
