"""Draw what is alive in a step: the bytes after each action, and where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from localprop.cost.alive import ValueReading
from localprop.report.bars import draw_bars
from localprop.report.page.anatomy import Anatomy
from localprop.report.page.draw_front import prepare_axes
from localprop.report.page.palette import HATCHES, Palette
from localprop.schedule.values import Kind, Value
from localprop.writing.tables import MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RESTING = "weights, optimizer, batch"
_GRAPHS = "kept for backwards"
_FORWARD = "on their way forward"
_GRADIENTS = "gradients of activations"
_WEIGHT_GRADIENTS = "gradients of weights"
_KINDS = {
    Kind.GRAPH: _GRAPHS,
    Kind.TAP: _GRAPHS,
    Kind.TAP_EDGE: _GRAPHS,
    Kind.TAP_GRADIENT: _GRADIENTS,
    Kind.GRADIENT: _GRADIENTS,
    Kind.KEPT_GRADIENT: _GRADIENTS,
    Kind.SKIP_GRADIENTS: _GRADIENTS,
    Kind.WEIGHT_GRADIENT: _WEIGHT_GRADIENTS,
    Kind.HEAD_GRADIENT: _WEIGHT_GRADIENTS,
}
_ORDER = (_RESTING, _GRAPHS, _FORWARD, _GRADIENTS, _WEIGHT_GRADIENTS)


def draw_alive(anatomy: Anatomy, palette: Palette) -> Figure:
    """Draw the bytes that are alive after each action by kind, and below by module."""
    from matplotlib.figure import Figure

    values, modules = anatomy.values, len(anatomy.table.sizes)
    figure = Figure(figsize=(5.2, 3.5 + min(0.14 * modules, 2.2)), layout="constrained")
    heights = [2.6, 0.5 + min(0.14 * modules, 2.2)]
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    _draw_kinds(upper, values, palette)
    _draw_modules(lower, anatomy, palette)
    return figure


def count_by_kind(values: ValueReading) -> dict[str, list[float]]:
    """The MiB of each kind after each action. The order is that of the chart, from below."""
    found = {kind: [0.0] * len(values.actions) for kind in _ORDER}
    for place, reading in enumerate(values.actions):
        found[_RESTING][place] = values.memory.resting_bytes / MIB
        for value, nbytes in reading.values.items():
            found[_KINDS.get(value.kind, _FORWARD)][place] += nbytes / MIB
    return found


def _draw_kinds(axes: Axes, values: ValueReading, palette: Palette) -> None:
    prepare_axes(axes, palette)
    places = np.arange(len(values.actions) + 1)
    handles: dict[str, Any] = {}
    below = np.zeros(len(places))
    for number, (kind, sizes) in enumerate(count_by_kind(values).items()):
        top = below + np.array([*sizes, sizes[-1]])
        colour = palette.muted if number == 0 else palette.series[number - 1]
        between = (places, below, top)
        handles[kind] = (
            axes.fill_between(*between, step="post", facecolor=colour, alpha=0.25, linewidth=0),
            axes.fill_between(
                *between, step="post", facecolor="none", edgecolor=colour, linewidth=0.4,
                hatch=HATCHES[number],
            ),
        )  # fmt: skip
        below = top
    peaks = [reading.peak_bytes / MIB for reading in values.actions]
    (handles["most while an action runs"],) = axes.step(
        places, [*peaks, peaks[-1]], where="post", color=palette.ink, linewidth=1.2
    )
    highest = max(range(len(peaks)), key=peaks.__getitem__)
    axes.plot(highest + 0.5, peaks[highest], marker="v", color=palette.accent, markersize=7)
    axes.annotate(
        f"{peaks[highest]:.1f} MiB at {values.actions[highest].action}",
        (highest + 0.5, peaks[highest]),
        xytext=(0, 7),
        textcoords="offset points",
        ha="right" if highest > len(peaks) / 2 else "left",
        color=palette.ink,
        fontsize=9,
    )
    axes.set_ylim(0, 1.22 * max(peaks))
    axes.set_ylabel("alive, MiB")
    axes.legend(
        handles.values(), handles.keys(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2,
        fontsize=8, frameon=False, labelcolor=palette.ink,
    )  # fmt: skip


def _draw_modules(axes: Axes, anatomy: Anatomy, palette: Palette) -> None:
    values, modules = anatomy.values, len(anatomy.table.sizes)
    prepare_axes(axes, palette)
    axes.grid(False)
    sizes = np.zeros((modules, len(values.actions)))
    for place, reading in enumerate(values.actions):
        for value, nbytes in reading.values.items():
            if (module := find_module(value, anatomy)) is not None:
                sizes[module, place] += nbytes
    shares = sizes / max(sizes.max(), 1)
    # Bars of one colour, the longer the more: no scale of colours has to be told apart.
    rows, columns = np.nonzero(shares)
    boxes = [
        (column + 0.1, row - 0.45 * share, 0.8, 0.9 * share)
        for row, column, share in zip(rows, columns, shares[rows, columns], strict=True)
    ]
    draw_bars(axes, boxes, facecolor=palette.accent, edgecolor="none")
    axes.set_ylim(modules - 0.5, -0.5)
    axes.set_xlim(0, len(values.actions))
    axes.set_yticks(range(0, modules, max(1, modules // 8)))
    step = max(1, len(values.actions) // 9)
    axes.set_xticks(
        [place + 0.5 for place in range(0, len(values.actions), step)],
        [str(values.actions[place].action) for place in range(0, len(values.actions), step)],
    )
    axes.set_xlabel("actions of a step, in their order")
    axes.set_ylabel("module")


def find_module(value: Value, anatomy: Anatomy) -> int | None:
    """The module where a value stands; None for what is of the whole step."""
    if not isinstance(value.at, int):
        return None
    if value.kind in (Kind.CONTEXT, Kind.MODULE_INPUT):
        return value.at
    if value.kind in (Kind.HEAD_GRADIENT, Kind.LOSS, Kind.CARRIED):
        return anatomy.table.module_of_loss[value.at]
    return anatomy.module_of[value.at]
