"""Balanced cuts, against all possible cuts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from localprop.network.balance import find_balanced_cuts


def find_highest_cost(costs: Sequence[int], cuts: tuple[int, ...], added: Sequence[int]) -> int:
    """The cost of the costliest part, with what is added to each part."""
    bounds = pairwise((0, *cuts, len(costs)))
    totals = [sum(costs[start:end]) for start, end in bounds]
    return max(total + extra for total, extra in zip(totals, added, strict=True))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_balanced_cuts_against_brute_force(costs: list[int], data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(costs)))
    cuts = find_balanced_cuts(costs, parts)
    assert len(cuts) == parts - 1
    assert all(a < b for a, b in pairwise((0, *cuts, len(costs))))
    none_added = [0] * parts
    highest = [
        find_highest_cost(costs, each, none_added)
        for each in combinations(range(1, len(costs)), parts - 1)
    ]
    assert find_highest_cost(costs, cuts, none_added) == min(highest)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.data())
def test_balanced_cuts_with_added_costs_against_brute_force(
    costs: list[int], data: st.DataObject
) -> None:
    parts = data.draw(st.integers(1, len(costs)))
    added = data.draw(st.lists(st.integers(0, 9), min_size=parts, max_size=parts))
    cuts = find_balanced_cuts(costs, parts, added)
    highest = [
        find_highest_cost(costs, each, added)
        for each in combinations(range(1, len(costs)), parts - 1)
    ]
    assert find_highest_cost(costs, cuts, added) == min(highest)


def test_as_many_groups_as_items_and_few_groups_of_many_items() -> None:
    count = 1500  # a search through all starts of all groups would take minutes
    assert find_balanced_cuts([1.0] * count, count) == tuple(range(1, count))
    assert find_balanced_cuts([1.0] * count, 3) == (500, 1000)


def test_of_equal_cuts_the_first_is_taken() -> None:
    assert find_balanced_cuts([1, 1, 5, 0, 0], groups=3) == (1, 2)
    assert find_balanced_cuts([0, 0, 0], groups=2) == (1,)
