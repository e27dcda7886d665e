"""Ranks in turns: run each as far as it gets, and again when another rank may have freed it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from localprop.schedule.schedule import Schedule


def run_in_turns(rank_schedules: Sequence[Schedule], advance: Callable[[int], bool]) -> None:
    """Advance the ranks until none of them can go on.

    A rank waits for messages alone. So after one has advanced, only those that it exchanges
    messages with are asked again: a long pipeline costs no more turns per rank than a short one.

    Args:
        rank_schedules: of all ranks.
        advance: runs a rank until it must wait, or has ended; returns whether anything ran.

    Example:
        >>> schedules = [Schedule.parse("0F 0SEND_F>1"), Schedule.parse("0RECV_F<0 1F")]
        >>> left = [2, 2]
        >>> def advance(rank: int) -> bool:
        ...     print("rank", rank)
        ...     before, left[rank] = left[rank], 0
        ...     return before > 0
        >>> run_in_turns(schedules, advance)
        rank 0
        rank 1
        rank 0
    """
    peers = [{a.peer for a in each if a.peer is not None} for each in rank_schedules]
    turns = deque(range(len(peers)))
    waiting = set(turns)
    while turns:
        rank = turns.popleft()
        waiting.remove(rank)
        if advance(rank):
            again = sorted(peers[rank] - waiting)
            turns += again
            waiting.update(again)
