"""The front: values by hand."""

from __future__ import annotations

import random

from localprop.report.page.front import Point, find_front


def numbers(points: list[Point], *, larger_is_better: bool = True) -> list[int]:
    return [point.number for point in find_front(points, larger_is_better=larger_is_better)]


def test_what_another_equals_or_beats_in_both_is_left_out() -> None:
    points = [Point(0, 100, 96), Point(1, 70, 96), Point(2, 70, 90), Point(3, 80, 93)]
    assert numbers(points) == [1]
    assert numbers([*points, Point(4, 60, 80), Point(5, 120, 97)]) == [4, 1, 5]


def test_fewer_bits_are_better() -> None:
    points = [Point(0, 1, 3.0), Point(1, 2, 2.5), Point(2, 3, 2.7)]
    assert numbers(points, larger_is_better=False) == [0, 1]


def test_equal_points_count_once() -> None:
    assert numbers([Point(0, 1, 1), Point(1, 1, 1)]) == [0]


def test_it_is_what_the_definition_says() -> None:
    draw = random.Random(0)
    for _ in range(50):
        points = [Point(k, draw.randrange(5), draw.randrange(5)) for k in range(8)]
        beaten = {
            p.number
            for p in points
            for q in points
            if q.cost <= p.cost and q.quality >= p.quality and q[1:] != p[1:]
        }
        expected = {p[1:] for p in points if p.number not in beaten}
        assert {p[1:] for p in find_front(points, larger_is_better=True)} == expected
