"""Cut a row of costs into groups of nearly equal sums."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

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
    count = len(costs)
    if not 1 <= groups <= count:
        check([f"{groups} groups of {count} items: choose 1 to {count}."])
    if len(added) not in (0, groups):
        check([f"{len(added)} added costs for {groups} groups: give one for each."])
    # Dynamic programming. No group is empty, so group g begins at one of the items g .. g + width.
    # For each end of a group, `costliest` has the cost of the costliest group so far by its start.
    sums, width = np.array([0.0, *accumulate(costs)]), count - groups
    places = np.arange(width + 1)
    too_late = np.where(places > places[:, None], np.inf, 0.0)  # a start after the end
    best = np.where(places > 0, np.inf, 0.0)
    starts = []
    for group, extra in enumerate(added or [0.0] * groups):
        bounds = sums[group : group + width + 2]
        costliest = np.maximum(best, bounds[1:, None] - bounds[:-1] + extra) + too_late
        # `argmin` takes the first of equal ones, so ties do not depend on anything else.
        starts.append(costliest.argmin(axis=1))
        best = costliest.min(axis=1)
    cuts, place = [], width
    for group in reversed(range(1, groups)):
        place = int(starts[group][place])
        cuts.append(group + place)
    return tuple(reversed(cuts))
