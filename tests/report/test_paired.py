"""Differences of methods with the same seeds: the interval, and what may be called better."""

from __future__ import annotations

import pytest

from localprop.report.paired import Difference, compare_pairs


def test_the_interval_is_that_of_students_table() -> None:
    """t for 95 % is 4.303 with 2 degrees of freedom, and 2.776 with 4."""
    found = compare_pairs([3.0, 4.0, 6.0], [1.0, 1.0, 1.0], larger_is_better=True)
    assert found is not None
    # Differences 2, 3, 5: mean 10 / 3, and a variance of 7 / 3.
    half = 4.303 * (7 / 3 / 3) ** 0.5
    assert found.mean == pytest.approx(10 / 3)
    assert (found.low, found.high) == pytest.approx((10 / 3 - half, 10 / 3 + half), rel=1e-3)
    assert found.verdict == ""
    five = compare_pairs([1.0, 2, 3, 4, 5], [0.0, 0, 0, 0, 0], larger_is_better=True)
    assert five is not None
    half = 2.776 * (2.5 / 5) ** 0.5
    assert (five.low, five.high) == pytest.approx((3 - half, 3 + half), rel=1e-3)
    assert five.verdict == "better"


def test_pairs_count_and_not_the_spread_over_seeds() -> None:
    """Seeds differ by 20 points here, and the methods by one in each seed."""
    base = [50.0, 70.0, 60.0]
    found = compare_pairs([51.1, 71.0, 60.9], base, larger_is_better=True)
    assert found is not None
    assert found.mean == pytest.approx(1)
    assert found.verdict == "better"


@pytest.mark.parametrize(
    ("values", "larger_is_better", "verdict"),
    [
        ([1.0, 1.1], True, "better"),
        ([1.0, 1.1], False, "worse"),
        ([-1.0, -1.1], True, "worse"),
        ([-1.0, -1.1], False, "better"),
        ([1.0, 1.5], True, ""),  # t is 12.7 with two seeds
        ([0.0, 0.0], True, ""),
    ],
)
def test_better_only_where_the_interval_leaves_zero_out(
    values: list[float], larger_is_better: bool, verdict: str
) -> None:
    found = compare_pairs(values, [0.0, 0.0], larger_is_better=larger_is_better)
    assert found is not None
    assert found.verdict == verdict


def test_one_seed_has_no_interval_and_a_failed_run_no_difference() -> None:
    assert compare_pairs([2.0], [1.0], larger_is_better=True) == Difference(1.0, None, None, "")
    assert compare_pairs([2.0, None], [1.0, 1.0], larger_is_better=True) is None
    assert compare_pairs([2.0, 2.0], [None, 1.0], larger_is_better=True) is None
    # So far one of two seeds.
    assert compare_pairs([2.0], [1.0, 9.0], larger_is_better=True) == Difference(
        1.0, None, None, ""
    )
