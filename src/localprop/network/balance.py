"""Cut a row of costs into parts of nearly equal sums."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from localprop.errors import check


def balanced_cuts(costs: Sequence[float], parts: int, added: Sequence[float] = ()) -> tuple[int, ...]:
    """Where to cut so that the costliest part costs as little as possible.

    Args:
        costs: of each item, 0 or more.
        parts: how many, none of them empty.
        added: what each part costs besides its items; nothing if not given.

    Returns:
        A cut before item i for each i.

    Raises:
        BadInput: more parts than items, or another number of added costs than of parts.

    Example:
        >>> balanced_cuts([1, 1, 1, 1], parts=2)
        (2,)
        >>> balanced_cuts([1, 1, 1, 1], parts=2, added=[2, 0])  # a head that costs as much as two layers
        (1,)
    """
    count, sums = len(costs), [0.0, *accumulate(costs)]
    check([f"{parts} parts of {count} items: choose 1 to {count}."] if not 1 <= parts <= count else [])
    check([f"{len(added)} added costs for {parts} parts: give one for each."] if len(added) not in (0, parts) else [])
    best = {0: (0.0, tuple[int, ...]())}  # by the number of items so far: the costliest part, and where parts end
    for extra in added or [0.0] * parts:
        before, best = best, {}
        for end in range(min(before) + 1, count + 1):
            worst = {start: max(before[start][0], sums[end] - sums[start] + extra) for start in before if start < end}
            start = min(worst, key=worst.__getitem__)
            best[end] = worst[start], (*before[start][1], end)
    return best[count][1][:-1]
