"""The front: which methods no other beats in accuracy and cost at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """A method in a chart of quality against a cost.

    Attributes:
        number: of the method.
        cost: less is better.
        quality: more is better, or less where `find_front` is told so.
    """

    number: int
    cost: float
    quality: float


def find_front(points: Sequence[Point], *, larger_is_better: bool) -> list[Point]:
    """The points that no other equals or beats in both, from the cheapest to the best.

    Of points that are equal in both the first counts.

    Example:
        >>> points = [Point(0, 3, 90), Point(1, 1, 80), Point(2, 2, 70)]
        >>> [point.number for point in find_front(points, larger_is_better=True)]
        [1, 0]
    """
    sign = 1 if larger_is_better else -1
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -sign * point.quality)):
        if not front or sign * point.quality > sign * front[-1].quality:
            front.append(point)
    return front
