"""Draw how similar the modules of two networks are: a map with a number in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from localprop.report.page.draw_front import prepare_axes
from localprop.report.page.palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DARKEST = 0.45  # so that the number in a cell stays readable on it


def draw_similarity(values: Sequence[Sequence[float | None]], palette: Palette) -> Figure:
    """Draw a matrix, the first module at the top left. Colour repeats what the numbers say.

    Args:
        values: modules of a method x modules of the end-to-end network, at most 1.
        palette: the colours.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = len(values), len(values[0])
    figure = Figure(figsize=(5.2, 0.6 + 4.5 * min(1.2, rows / columns)), layout="constrained")
    axes: Axes = figure.subplots()
    prepare_axes(axes, palette)
    axes.grid(False)
    size = min(9.0, 130 / max(rows, columns))
    for row, own in enumerate(values):
        for column, value in enumerate(own):
            darkness = _DARKEST * min(1.0, max(0.0, value or 0.0))
            place = (column - 0.5, row - 0.5)
            cell = Rectangle(place, 1, 1, facecolor=palette.accent, alpha=darkness, linewidth=0)
            axes.add_patch(cell)
            text = "–" if value is None else f"{value:.2f}".replace("0.", ".", 1)
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size}
            axes.text(column, row, text, color=palette.ink, **style)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows))
    axes.tick_params(length=0)
    axes.set_xlabel("module of the end-to-end network")
    axes.set_ylabel("module")
    return figure
