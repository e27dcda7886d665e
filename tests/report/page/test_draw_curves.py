"""Lines over epochs, and their labels."""

from __future__ import annotations

from itertools import pairwise

import pytest

from localprop.report.page.draw_curves import average, spread


def test_the_mean_is_over_the_runs_that_have_the_epoch() -> None:
    curve = average(0, "a", [[(1, 2.0), (2, 4.0)], [(1, 4.0), (3, 1.0)]])
    assert (list(curve.epochs), list(curve.values)) == ([1, 2, 3], [3.0, 4.0, 1.0])


@pytest.mark.parametrize("heights", [[0.5] * 6, [0.0, 0.01, 0.9], [1.0] * 8, [0.3, 0.1, 0.2]])
def test_labels_keep_their_order_and_do_not_overlap(heights: list[float]) -> None:
    placed = spread(dict(enumerate(heights)))
    order = sorted(placed, key=placed.__getitem__)
    assert [heights[label] for label in order] == sorted(heights)
    gaps = [placed[b] - placed[a] for a, b in pairwise(order)]
    assert all(gap >= 0.055 - 1e-9 for gap in gaps)
    assert max(placed.values()) <= 1
