"""Cut a row of costs into parts of nearly equal sums."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from localprop.errors import check


def balanced_cuts(costs: Sequence[float], parts: int) -> tuple[int, ...]:
    """Where to cut so that the costliest part costs as little as possible; of equal choices the latest cuts.

    Args:
        costs: of each item, 0 or more.
        parts: how many, none of them empty.

    Returns:
        A cut before item i for each i.

    Raises:
        BadInput: more parts than items.

    Example:
        >>> balanced_cuts([3, 1, 1, 1], parts=2)
        (1,)
    """
    count = len(costs)
    check([f"{parts} parts of {count} items: choose 1 to {count}."] if not 1 <= parts <= count else [])
    sums = [0.0, *accumulate(costs)]
    # best[i]: the smallest possible maximum over the first i items, cut into as many parts as rounds so far
    best, choices = list(sums), list[list[int]]()
    for part in range(2, parts + 1):
        options = [[(max(best[j], sums[i] - sums[j]), -j) for j in range(part - 1, i)] for i in range(count + 1)]
        chosen = [min(row) if row else (float("inf"), 0) for row in options]
        best = [cost for cost, _ in chosen]
        choices.append([-j for _, j in chosen])
    cuts, end = list[int](), count
    for row in reversed(choices):
        end = row[end]
        cuts.insert(0, end)
    return tuple(cuts)
