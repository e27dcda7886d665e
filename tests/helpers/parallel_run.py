"""All ranks of a pipeline at once, on messages alone: checks that rank schedules fit together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from localprop.schedule.schedule import RECEIVES, SENDS, Action, Op, Schedule


class ParallelRun:
    """Runs three steps of all ranks as the transport does.

    A rank begins a step after the rank before it has begun this step. It sends into channels that
    hold `allowed` messages, and receives in their order. Whatever an action waits for must be done
    or received when it runs.

    Args:
        rank_schedules: the schedule of each rank.
        waits: for each action, the actions that come before it.
        allowed: how many messages a channel holds.
    """

    def __init__(
        self, rank_schedules: Sequence[Schedule], waits: dict[Action, set[Action]], allowed: int
    ) -> None:
        self._actions = [list(list_with_step_starts(actions)) for actions in rank_schedules]
        self._waits, self._allowed = waits, allowed
        self._begun = [-1] * len(rank_schedules)
        self._queues: dict[tuple[int, int, Op], list[tuple[int, Action]]] = defaultdict(list)
        self._done: list[set[tuple[int, Action]]] = [set() for _ in rank_schedules]

    def run(self) -> None:
        positions = [0] * len(self._actions)
        progress = True
        while progress:
            progress = False
            for rank, actions in enumerate(self._actions):
                while positions[rank] < len(actions) and self._run(rank, *actions[positions[rank]]):
                    positions[rank] += 1
                    progress = True
        assert positions == [len(actions) for actions in self._actions], "ranks wait for each other"
        assert not any(self._queues.values()), "a message that nobody receives"

    def _run(self, rank: int, step: int, action: Action | None) -> bool:
        """Run an action if it does not have to wait, and say whether it ran."""
        if action is None:
            return self._begin(rank, step)
        if action.op in SENDS:
            return self._send(rank, step, action)
        if action.op in RECEIVES:
            return self._receive(rank, step, action)
        prompt = action._replace(deferred=False)
        missing = {a for a in self._waits[prompt] if (step, a) not in self._done[rank]}
        assert not missing, f"{action} before {missing}"
        self._done[rank].add((step, prompt))
        return True

    def _begin(self, rank: int, step: int) -> bool:
        if rank and self._begun[rank - 1] < step:
            return False
        self._begun[rank] = step
        return True

    def _send(self, rank: int, step: int, action: Action) -> bool:
        assert action.peer is not None
        queue = self._queues[rank, action.peer, action.op]
        if len(queue) == self._allowed:
            return False
        queue.append((step, action._replace(op=SENDS[action.op], peer=rank, deferred=False)))
        return True

    def _receive(self, rank: int, step: int, action: Action) -> bool:
        assert action.peer is not None
        queue = self._queues[action.peer, rank, RECEIVES[action.op]]
        if not queue:
            return False
        message = step, action._replace(deferred=False)
        assert queue.pop(0) == message, "a message taken for another"
        self._done[rank].add((step, find_maker(action)))
        return True


def list_with_step_starts(rank_schedule: Schedule) -> Iterator[tuple[int, Action | None]]:
    """Three steps of a rank, each after a None that stands for its beginning."""
    for step in range(3):
        yield step, None
        for action in rank_schedule:
            if step or not action.deferred:
                yield step - action.deferred, action
    yield from ((2, action) for action in rank_schedule if action.deferred)


def find_maker(message: Action) -> Action:
    """The action that makes a message."""
    op = Op.B if message.op is Op.RECV_B else Op.F
    return Action(op, message.segment, message.flow, message.microbatch)
