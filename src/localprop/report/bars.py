"""Many bars as one shape, which keeps files of charts small."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import PathPatch

# Left, bottom, width and height.
Box = tuple[float, float, float, float]


def draw_bars(axes: Axes, boxes: Iterable[Box], **style: Any) -> PathPatch:
    """Draw boxes of one look.

    Args:
        axes: where.
        boxes: in the units of the axes.
        **style: of `matplotlib.patches.Patch`.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> len(draw_bars(axes, [(0, 0, 1, 1), (2, 0, 1, 1)], hatch="//").get_path())
        10
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners: list[tuple[float, float]] = []
    codes: list[Any] = []
    for left, bottom, width, height in boxes:
        right, top = left + width, bottom + height
        corners += [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
        codes += [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY]
    shape = PathPatch(Path(corners, codes), **style)
    axes.add_patch(shape)
    return shape
