"""Lowering: from a wiring and a placement to the list of actions of each rank.

Every rank works out the lists of all ranks before the first step, and all of them get the same
result. An example with backward links of one layer, cut before segment 2::

    one process   0F 1F 1L 1H 1B.0 0B 0S 2F 2L 2B 2S 1B.1 1S
    rank 0        0F 2RECV_B<1' 1B.1' 1S' 1F 1SEND_F>1 1L 1H 1B.0 0B 0S
    rank 1        1RECV_F<0 2F 2L 2B 2SEND_B>0 2S

The trained values do not depend on the placement: each segment runs its micro-batches in order, and
gradients are summed in a fixed order.

`lower` adds one thing after the other:

1. which actions wait for which (`find_dependencies`, sums over replicas, the pipeline's order);
2. one order of actions per rank (rank_order.py);
3. sends, each right after the action that makes the message (messages.py);
4. a split into current and deferred actions (deferral.py);
5. receives, each right before its first use (messages.py);
6. the steady loop: this batch's current actions and the last batch's deferred ones (deferral.py).
"""

from __future__ import annotations

from collections import defaultdict, deque

from localprop.schedule.deferral import (
    find_remote_dependents,
    merge_deferred,
    split_deferred,
)
from localprop.schedule.messages import insert_receives, insert_sends
from localprop.schedule.placement import Placement
from localprop.schedule.rank_order import order_ranks
from localprop.schedule.schedule import (
    BACKWARDS,
    RECEIVES,
    REDUCES,
    SENDS,
    Action,
    ActionCost,
    Op,
    Schedule,
    find_dependencies,
    unroll,
)
from localprop.schedule.turns import run_in_turns
from localprop.schedule.wiring import Wiring

ORDERS = ("1f1b", "gpipe")


def lower(
    wiring: Wiring,
    placement: Placement,
    microbatches: int = 1,
    *,
    replicas: int = 1,
    order: str = "1f1b",
    cost: ActionCost | None = None,
) -> tuple[Schedule, ...]:
    """The actions of each stage in the steady loop. Deferred actions belong to the batch before.

    Args:
        wiring: segments, flows and objectives.
        placement: the segments of each stage.
        microbatches: the number of micro-batches that each replica splits its batch into.
        replicas: the number of replicas; with more than one, gradients are summed over them.
        order: "1f1b" runs backwards as early as possible and keeps few micro-batches in flight
            (PipeDream-flush, Narayanan et al. 2021, arXiv 2006.09503). "gpipe" runs all forwards
            first (Huang et al. 2019, arXiv 1811.06965).
        cost: the cost of an action in any unit, by default that of `uniform_action_cost`.
    """
    stages = placement.stages
    waits = find_dependencies(wiring, microbatches, stages)
    if replicas > 1:
        _add_reduces(waits)
    _add_pipeline_order(waits, stages, order, microbatches)
    remote = find_remote_dependents(waits, placement)
    ordered = order_ranks(waits, stages, cost or uniform_action_cost(wiring))
    split = [
        split_deferred(actions, remote) for actions in insert_sends(wiring, placement, ordered)
    ]
    complete = insert_receives(wiring, placement, split)
    return tuple(
        Schedule(merge_deferred(wiring, stage, actions))
        for stage, actions in zip(stages, complete, strict=True)
    )


def uniform_action_cost(wiring: Wiring) -> ActionCost:
    """The cost of an action if all layers cost the same.

    A layer costs 1 forward and 2 backward, of which 1 is for its weights. A head costs as much as
    the forward and backward of one layer. Everything else is free.
    """

    def cost(action: Action) -> float:
        layers = len(wiring.segments[action.segment].layers)
        backward = 1.0 if action.segment in wiring.weights_once else 2.0
        by_op = {Op.F: 1.0 * layers, Op.B: backward * layers, Op.W: 2.0 * layers, Op.L: 3.0}
        return by_op.get(action.op, 0.0)

    return cost


# --- more actions to wait for -----------------------------------------------------------------


def _add_reduces(waits: dict[Action, set[Action]]) -> None:
    """Put the sum over replicas between each step and the gradients that it waits for."""
    reduce_of = {step: reduce for reduce, step in REDUCES.items()}
    for step in [action for action in waits if action.op in reduce_of]:
        reduce = Action(reduce_of[step.op], step.segment, step.flow)
        waits[reduce], waits[step] = waits[step], {reduce}


def _add_pipeline_order(
    waits: dict[Action, set[Action]], stages: tuple[range, ...], order: str, microbatches: int
) -> None:
    """Make forwards wait for backwards, or backwards for forwards, as the pipeline's order asks.

    ::

        1f1b    rank 0   F0 F1 B0 F2 B1 F3 B2 B3      2 micro-batches in flight
                rank 1      F0 B0 F1 B1 F2 B2 F3 B3   1
        gpipe   rank 0   F0 F1 F2 F3 B0 B1 B2 B3      4
    """
    backwards: dict[int, list[Action]] = defaultdict(list)
    for action in waits:
        if action.op in BACKWARDS:
            backwards[action.segment].append(action)
    for rank, stage in enumerate(stages):
        on_rank = [action for segment in stage for action in backwards[segment]]
        if order == "gpipe":
            for backward in on_rank:
                waits[backward].add(Action(Op.F, stage[-1], None, microbatches - 1))
            continue
        # A micro-batch needs as many forwards to reach the last rank as there are ranks from here
        # on. More of them in flight cost memory and save no time.
        in_flight = len(stages) - rank
        for m in range(in_flight, microbatches):
            waits[Action(Op.F, stage[0], None, m)].update(
                backward for backward in on_rank if backward.microbatch == m - in_flight
            )


# --- no deadlock ------------------------------------------------------------------------------


def find_max_in_flight(rank_schedules: tuple[Schedule, ...]) -> int:
    """How many messages of one channel may be sent before the first of them is received.

    A channel is a pair of ranks and a kind of message. The result is the smallest power of 2, at
    least 2, with which no rank waits forever.

    Raises:
        RuntimeError: the ranks would wait for each other, or one message would be taken for
            another. This is a bug in localprop.
    """
    most_sends = max(sum(action.op in SENDS for action in actions) for actions in rank_schedules)
    allowed = 2
    while stuck := _MessageReplay(rank_schedules, allowed).find_stuck_ranks():
        # Channels that hold all messages of a step do not stop a sender. If ranks wait even then,
        # they wait for each other.
        if allowed > 2 * (most_sends + 1):
            raise RuntimeError(f"The ranks would wait for each other: {', '.join(stuck)}.")
        allowed *= 2
    return allowed


class _MessageReplay:
    """Replays three steps of all ranks, where actions other than sends and receives never wait.

    Args:
        rank_schedules: the schedule of each rank.
        allowed: how many messages a channel holds before a send waits.
    """

    def __init__(self, rank_schedules: tuple[Schedule, ...], allowed: int) -> None:
        # The first step has no deferred actions and the last one runs them at its end, so three
        # steps are the fewest with a step of the steady loop between two others.
        self._schedules = rank_schedules
        self._actions = [list(unroll(actions, steps=3)) for actions in rank_schedules]
        self._positions = [0] * len(rank_schedules)
        self._allowed = allowed
        self._queues: dict[tuple[int, int, Op], deque[tuple[int, Action]]] = defaultdict(deque)

    def find_stuck_ranks(self) -> list[str]:
        """The ranks that cannot finish, each with the action that it waits at."""
        run_in_turns(self._schedules, self._advance)
        places = zip(self._actions, self._positions, strict=True)
        return [
            f"rank {rank} at {actions[position][1]}"
            for rank, (actions, position) in enumerate(places)
            if position < len(actions)
        ]

    def _advance(self, rank: int) -> bool:
        """Run a rank until it has to wait, and say whether anything ran."""
        actions, start = self._actions[rank], self._positions[rank]
        position = start
        while position < len(actions) and self._run(rank, *actions[position]):
            position += 1
        self._positions[rank] = position
        return position > start

    def _run(self, rank: int, step: int, action: Action) -> bool:
        """Run an action if it does not have to wait, and say whether it ran."""
        if action.op in SENDS:
            return self._send(rank, step, action)
        if action.op in RECEIVES:
            return self._receive(rank, step, action)
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
        sent_step, sent = queue.popleft()
        # A message carries no name: the receiver takes the next one of the channel. So both sides
        # must list a channel's messages in the same order.
        if (sent_step, sent) != (step, action._replace(deferred=False)):
            raise RuntimeError(
                f"Rank {rank} would take {sent} of step {sent_step} for {action} of step {step}."
            )
        return True
