"""Cut a row of costs into groups of nearly equal sums."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from localprop.errors import check


def find_balanced_cuts(
    costs: Sequence[float], groups: int, added: Sequence[float] = ()
) -> tuple[int, ...]:
    """Find the cuts with which the costliest group costs as little as possible.

    Args:
        costs: the cost of each item, 0 or more.
        groups: the number of groups, none of them empty.
        added: what each group costs besides its items; nothing by default.

    Returns:
        The index of the first item of each group but the first.

    Raises:
        BadInput: more groups than items, or another number of added costs than of groups.

    Example:
        >>> find_balanced_cuts([1, 1, 1, 1], groups=2)
        (2,)
        >>> find_balanced_cuts([1, 1, 1, 1], groups=2, added=[2, 0])  # a head costs two layers
        (1,)
    """
    count, sums = len(costs), [0.0, *accumulate(costs)]
    if not 1 <= groups <= count:
        check([f"{groups} groups of {count} items: choose 1 to {count}."])
    if len(added) not in (0, groups):
        check([f"{len(added)} added costs for {groups} groups: give one for each."])
    # Dynamic programming. After group g, best[n] holds, for the first n items in g groups, the cost
    # of the costliest group and where the groups end.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for extra in added or [0.0] * groups:
        previous, best = best, {}
        for end in range(min(previous) + 1, count + 1):
            costliest = {
                start: max(previous[start][0], sums[end] - sums[start] + extra)
                for start in previous
                if start < end
            }
            # `min` takes the first of equal ones, so ties do not depend on anything else.
            start = min(costliest, key=costliest.__getitem__)
            best[end] = costliest[start], (*previous[start][1], end)
    return best[count][1][:-1]
