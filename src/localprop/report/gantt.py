"""Gantt charts: who computes what, and who waits for whom."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localprop.errors import BadInput
from localprop.step.schedule import Op
from localprop.step.timeline import Event, Timeline, Wait

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".html", ".png", ".svg")
_PUT_OFF, _WAIT = "gradients of weights, put off", "waits for the rank ... (in white)"
_COLOURS = {
    "F forward": "#4c78a8",
    "L local loss": "#eeca3b",
    "B backward": "#54a24b",
    _PUT_OFF: "#b7dfb0",
    "S, H steps": "#7f7f7f",
    _WAIT: "#e45756",
}
_NAMES = {
    Op.F: "F forward",
    Op.L: "L local loss",
    Op.B: "B backward",
    Op.S: "S, H steps",
    Op.H: "S, H steps",
    Op.P: "S, H steps",
}
_MANY = 16
_WIDE = 0.02  # a wait that fills this share of the chart says whom it is for


def gantt(timelines: Mapping[str, Timeline], path: str | Path, note: str = "") -> None:
    """Draw timelines below each other, on one scale of time: two batches of the steady loop, or all if there are few.

    Args:
        timelines: by title.
        path: a file that ends in .html (one self-contained page), .png or .svg.
        note: printed below.

    Raises:
        BadInput: another kind of file, or matplotlib is not installed.

    Example:
        >>> from localprop.step.schedule import Action
        >>> timeline = Timeline(1, 1, (Event(0, Action(Op.F, 0), 0, 0.0, 1.0),), (), {}, (0.0,))
        >>> gantt({"one forward": timeline}, "chart.svg")
    """
    path = Path(os.path.expanduser(path))
    if path.suffix not in FORMATS:
        raise BadInput(f"A chart cannot be written to {path.name}: its name must end in {', '.join(FORMATS)}.")
    if path.suffix == ".html":
        path.write_text(_page(_figure(timelines), note))
    else:
        _figure(timelines, note).savefig(path, dpi=120)


def require_matplotlib() -> None:
    """Find out that charts can be drawn, before hours of work.

    Raises:
        BadInput: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BadInput(f"Charts need matplotlib ({error}): pip install 'localprop[report]'.") from error


def _figure(timelines: Mapping[str, Timeline], note: str = "") -> Figure:
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    heights = [0.5 + min(0.25 * timeline.ranks, 4.0) for timeline in timelines.values()]
    figure = Figure(figsize=(12, sum(heights) + 1.2), layout="constrained")
    panels: Any = figure.subplots(len(timelines), 1, squeeze=False, height_ratios=heights)
    windows = [_window(timeline) for timeline in timelines.values()]
    width = max(end - start for start, end in windows)
    for axes, (title, timeline), (start, _) in zip(panels[:, 0], timelines.items(), windows, strict=True):
        _panel(axes, title, timeline, start, width)
    panels[-1, 0].set_xlabel("milliseconds")
    handles = [Patch(color=colour, label=name) for name, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize="small")
    if note:
        figure.supxlabel(textwrap.fill(note, 170), fontsize="x-small")
    return figure


def _window(timeline: Timeline) -> tuple[float, float]:
    """Two batches from the middle of the first rank's, or everything."""
    if timeline.steps < 4:
        return 0.0, timeline.span_s
    middle = timeline.steps // 2
    start = min(event.start_s for event in timeline.events if event.step == middle)
    return start, start + 2 * timeline.seconds_per_step


def _panel(axes: Axes, title: str, timeline: Timeline, start: float, width: float) -> None:
    axes.set_title(title, loc="left", fontsize="small")
    axes.set_xlim(0, 1000 * width)
    axes.set_ylim(timeline.ranks - 0.5, -0.5)
    axes.set_yticks(range(0, timeline.ranks, max(1, timeline.ranks // 8)))
    axes.set_ylabel("rank", fontsize="small")
    for rank in range(timeline.ranks):
        for name, spans in _spans(timeline, rank, start, start + width).items():
            bars = axes.broken_barh(
                spans, (rank - 0.4, 0.8), facecolors=_COLOURS[name], edgecolors="white", linewidth=0.2
            )
            bars.set_rasterized(timeline.ranks > _MANY)  # else an .svg of 64 ranks would be 10 MB
    for wait in timeline.waits:
        left, right = max(wait.start_s, start), min(wait.end_s, start + width)
        if right - left > _WIDE * width and timeline.ranks <= _MANY:
            axes.text(500 * (left + right - 2 * start), wait.rank, _whom(wait), color="white", ha="center", va="center")


def _whom(wait: Wait) -> str:
    return "replicas" if wait.peer == wait.rank else str(wait.peer)


def _spans(timeline: Timeline, rank: int, start: float, end: float) -> dict[str, list[tuple[float, float]]]:
    """What a rank does from start to end, by name: when it begins and how long it takes, in milliseconds from start."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, item in _named(timeline, rank):
        left, right = max(item.start_s, start), min(item.end_s, end)
        if left < right:
            found.setdefault(name, []).append((1000 * (left - start), 1000 * (right - left)))
    return found


def _named(timeline: Timeline, rank: int) -> Iterator[tuple[str, Event | Wait]]:
    for event in timeline.events:
        if event.rank == rank:
            yield _PUT_OFF if event.put_off else _NAMES[event.action.op], event
    for wait in timeline.waits:
        if wait.rank == rank:
            yield _WAIT, wait


def _page(figure: Figure, note: str) -> str:
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    svg = drawing.getvalue()
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>Who waits for whom</title>',
            "<style>body { font-family: sans-serif; margin: 1em } svg { max-width: 100%; height: auto }</style></head>",
            f"<body><h1>Who waits for whom</h1><p>{escape(note)}</p>",
            svg[svg.index("<svg") :],
            "</body></html>",
        ]
    )
