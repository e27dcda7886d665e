"""Ranks in turns: everybody goes on in the end, and nobody is asked in vain for long."""

from __future__ import annotations

from collections import Counter

import pytest

from localprop.schedule.schedule import Action, Op, Schedule
from localprop.schedule.turns import run_in_turns


def make_chain(ranks: int, batches: int) -> list[Schedule]:
    """A message goes down the chain and comes back, again and again."""
    schedules = []
    for rank in range(ranks):
        once = [Action(Op.F, rank)]
        if rank:
            once = [Action(Op.RECV_F, rank - 1, peer=rank - 1), *once]
        if rank + 1 < ranks:
            once += [
                Action(Op.SEND_F, rank, peer=rank + 1),
                Action(Op.RECV_B, rank + 1, peer=rank + 1),
            ]
        if rank:
            once.append(Action(Op.SEND_B, rank, peer=rank - 1))
        schedules.append(Schedule(once * batches))
    return schedules


@pytest.mark.parametrize("ranks", [1, 2, 5, 40])
def test_a_chain_of_ranks(ranks: int) -> None:
    schedules = make_chain(ranks, batches=3)
    done, sent = [0] * ranks, Counter[tuple[int, int]]()
    turns = moves = 0

    def advance(rank: int) -> bool:
        nonlocal turns, moves
        turns, before = turns + 1, done[rank]
        while done[rank] < len(schedules[rank]):
            action = schedules[rank][done[rank]]
            if action.op in (Op.SEND_F, Op.SEND_B):
                assert action.peer is not None
                sent[rank, action.peer] += 1
            if action.op in (Op.RECV_F, Op.RECV_B):
                assert action.peer is not None
                if not sent[action.peer, rank]:
                    break
                sent[action.peer, rank] -= 1
            done[rank] += 1
        moves += done[rank] > before
        return done[rank] > before

    run_in_turns(schedules, advance)
    assert done == list(map(len, schedules))
    # One turn at the start, then at most one of each neighbour for each that led somewhere. In
    # rounds over all ranks there would be about as many turns as ranks for each.
    assert turns <= ranks + 2 * moves
