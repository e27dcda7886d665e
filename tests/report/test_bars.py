"""Many bars as one shape."""

from __future__ import annotations

from matplotlib.figure import Figure

from localprop.report.bars import draw_bars


def test_bars_are_where_they_are_said_to_be() -> None:
    axes = Figure().subplots()
    shape = draw_bars(axes, [(0, 1, 2, 3), (5, 5, 1, 1)], facecolor="red")
    box = shape.get_path().get_extents()
    assert (box.x0, box.y0, box.x1, box.y1) == (0, 1, 6, 6)
    inside = [(1, 2), (5.5, 5.5)]
    assert shape.get_path().contains_points(inside).all()
    assert not shape.get_path().contains_points([(3, 3), (5.5, 2)]).any()
    assert shape in axes.patches
