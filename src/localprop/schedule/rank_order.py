"""One order of actions for each rank, by list scheduling on simulated time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush

from localprop.schedule.schedule import REDUCES, Action, ActionCost, Op, urgency


def order_ranks(
    waits: Mapping[Action, set[Action]], stages: Sequence[range], cost: ActionCost
) -> list[list[Action]]:
    """The order in which each rank runs its actions, without messages.

    Args:
        waits: for each action, the actions that come before it.
        stages: the segments of each rank.
        cost: the cost of an action, in the unit of the simulated time.
    """
    return _ListScheduler(waits, stages, cost).run()


class _ListScheduler:
    """Simulates all ranks at once. The rank that can start first runs its most urgent ready action.

    An action is ready when the actions that it waits for have ended and their messages, if they
    ran on another rank, have arrived.
    """

    def __init__(
        self, waits: Mapping[Action, set[Action]], stages: Sequence[range], cost: ActionCost
    ) -> None:
        self._waits, self._cost = waits, cost
        self._stage_of = {s: rank for rank, stage in enumerate(stages) for s in stage}
        # Messages and sums over replicas take half of the cheapest stage's forward. With no latency
        # at all, two actions would often be ready at almost the same time, and a rounding error in
        # the costs would decide their order.
        self._latency = min(sum(cost(Action(Op.F, s)) for s in stage) for stage in stages) / 2
        self._free_at = [0.0] * len(stages)
        self._ended_at: dict[Action, float] = {}
        self._missing = {action: len(before) for action, before in waits.items()}
        self._followers: dict[Action, list[Action]] = defaultdict(list)
        for action, before in waits.items():
            for earlier in before:
                self._followers[earlier].append(action)
        # For each rank, the ready actions and the time from which each of them can run.
        self._ready: list[dict[Action, float]] = [{} for _ in stages]
        # A heap of the times at which ranks can start. What a rank can start changes, so it has
        # several entries, of which only the one that is still true counts.
        self._starts: list[tuple[float, int]] = []
        for action, count in self._missing.items():
            if count == 0:
                self._ready[self._stage_of[action.segment]][action] = 0.0
        for rank in range(len(stages)):
            self._note_start(rank)

    def run(self) -> list[list[Action]]:
        orders = [list[Action]() for _ in self._ready]
        while self._starts:
            start, rank = heappop(self._starts)
            if start != self._find_earliest_start(rank):
                continue
            ready = self._ready[rank]
            startable = (a for a in ready if self._find_start(rank, a) == start)
            action = min(startable, key=urgency)
            del ready[action]
            orders[rank].append(action)
            self._ended_at[action] = self._free_at[rank] = start + self._cost(action)
            changed = {rank, *self._release_followers(action)}
            for each in changed:
                self._note_start(each)
        return orders

    def _note_start(self, rank: int) -> None:
        start = self._find_earliest_start(rank)
        if start is not None:
            heappush(self._starts, (start, rank))

    def _find_earliest_start(self, rank: int) -> float | None:
        return min((self._find_start(rank, action) for action in self._ready[rank]), default=None)

    def _find_start(self, rank: int, action: Action) -> float:
        return max(self._free_at[rank], self._ready[rank][action])

    def _release_followers(self, action: Action) -> Iterator[int]:
        """The ranks that have more ready actions now."""
        for follower in self._followers[action]:
            self._missing[follower] -= 1
            if self._missing[follower] == 0:
                rank = self._stage_of[follower.segment]
                arrivals = (self._find_arrival(a, rank) for a in self._waits[follower])
                self._ready[rank][follower] = max(arrivals)
                yield rank

    def _find_arrival(self, action: Action, rank: int) -> float:
        """The time at which the result of an action is on a rank."""
        travels = self._stage_of[action.segment] != rank or action.op in REDUCES
        return self._ended_at[action] + (self._latency if travels else 0)
