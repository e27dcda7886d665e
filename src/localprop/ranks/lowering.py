"""From a wiring and a placement to each rank's own list of actions, worked out alike on all ranks before the first step.

::

    one process   0F 0L 0H 0B0 0S 1F 2F 2L 2H 2B0 1B0 ...       links of one layer, cut before segment 2
    rank 0        0F 0L 0H 0B0 0S   1B1<1' 1S'   1F 1SEND_F>1 1L 1B0 ...
    rank 1        1RECV_F<0 2F 2L 2H 2B0 2SEND_B0>0 2S ...

Values do not depend on the placement: each segment has its own order of micro-batches, and sums are made in a fixed order.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from localprop.ranks.placement import Placement
from localprop.step.schedule import (
    RECEIVES,
    REDUCES,
    SENDS,
    Action,
    Op,
    Schedule,
    unrolled,
    urgency,
    waits_of,
    with_reruns,
)
from localprop.step.timing import Cost
from localprop.step.wiring import Wiring

Waits = Mapping[Action, set[Action]]
ORDERS = ("1f1b", "gpipe")


class Lowering(NamedTuple):
    """The parts that all ranks' actions are made from."""

    wiring: Wiring
    placement: Placement
    waits: Waits
    stage_of: Mapping[int, int]


def lower(
    wiring: Wiring,
    placement: Placement,
    microbatches: int = 1,
    *,
    recomputed: frozenset[int] = frozenset(),
    replicas: int = 1,
    order: str = "1f1b",
    cost: Cost | None = None,
) -> tuple[Schedule, ...]:
    """The actions of every stage in the steady loop; those that are late belong to the batch before.

    Args:
        wiring: segments, flows and objectives.
        placement: segments to stages.
        microbatches: parts that each replica runs its batch in.
        recomputed: segments that run again before their backward.
        replicas: more than one adds the sums over replicas.
        order: "1f1b" (backwards as early as they can, few micro-batches in flight; PipeDream-flush, Narayanan et al. 2021,
            arXiv 2006.09503) or "gpipe" (all forwards first; Huang et al. 2019, arXiv 1811.06965).
        cost: of an action, in any unit; by default a layer's forward is 1 and its backward 2.
    """
    stage_of = {s: i for i, stage in enumerate(placement.stages) for s in stage}
    waits = waits_of(wiring, microbatches, placement.stages)
    if replicas > 1:
        _add_reduces(waits)
    plan = Lowering(wiring, placement, waits, stage_of)
    _hold_forwards_back(plan, order, microbatches)
    orders, far, receivers = _ordered(plan, cost or layer_cost(wiring)), _far(plan), _receivers(plan)
    whole_orders = (_with_sends(plan, receivers, i, own) for i, own in enumerate(orders))
    sent = [_with_reruns(_split_late(far, own), recomputed) for own in whole_orders]
    whole = [_with_receives(plan, i, sent) for i in range(len(sent))]
    return tuple(Schedule(_merged(stage, own, wiring)) for stage, own in zip(placement.stages, whole, strict=True))


def layer_cost(wiring: Wiring) -> Cost:
    """The cost of an action by the number of layers: forward 1, backward 2, a head as much as a layer's forward and backward."""

    def cost(action: Action) -> float:
        layers = len(wiring.segments[action.segment].layers)
        return {Op.F: 1.0 * layers, Op.B: 2.0 * layers, Op.L: 3.0}.get(action.op, 0.0)

    return cost


# --- what waits for what --------------------------------------------------------------------------------------------


def _add_reduces(waits: dict[Action, set[Action]]) -> None:
    steps = {step: reduce for reduce, step in REDUCES.items()}
    for action in [action for action in waits if action.op in steps]:
        reduce = Action(steps[action.op], action.segment, action.flow)
        waits[reduce], waits[action] = waits[action], {reduce}


def _far(plan: Lowering) -> set[Action]:
    """The backwards and steps that depend on an error from the rank after, or on another replica."""
    far: set[Action] = set()
    for action in _downwards(plan.waits):
        here = plan.stage_of[action.segment]
        for before in plan.waits[action] if action.op is not Op.F else ():
            other_rank = action.op is Op.B and plan.stage_of[before.segment] != here
            if other_rank or before in far or before.op in REDUCES:
                far.add(action)
    return far


def _downwards(waits: Waits) -> Iterator[Action]:
    """All actions, each after those that it waits for."""
    done: set[Action] = set()
    left = list(waits)
    while left:
        rest = []
        for action in left:
            if waits[action] <= done:
                done.add(action)
                yield action
            else:
                rest.append(action)
        left = rest


def _hold_forwards_back(plan: Lowering, order: str, microbatches: int) -> None:
    """Add what the order of a pipeline asks for: which forwards wait for backwards, or the other way round."""
    count = len(plan.placement.stages)
    backwards = [action for action in plan.waits if action.op is Op.B]
    for i, stage in enumerate(plan.placement.stages):
        own = [action for action in backwards if action.segment in stage]
        if order == "gpipe":
            for action in own:
                plan.waits[action].add(Action(Op.F, stage[-1], None, microbatches - 1))
        else:
            for m in range(count - i, microbatches):
                plan.waits[Action(Op.F, stage[0], None, m)].update(a for a in own if a.microbatch == m - (count - i))


# --- one order for each rank ----------------------------------------------------------------------------------------


def _ordered(plan: Lowering, cost: Cost) -> list[list[Action]]:
    """List scheduling over ranks: whoever is free first runs the most urgent of what is ready.

    A message, or a sum over replicas, is taken to travel for as long as half of the cheapest stage's forward, so that an order
    does not hang on a moment.
    """
    stages = plan.placement.stages
    delay = min(sum(cost(Action(Op.F, s)) for s in stage) for stage in stages) / 2
    clock, orders = [0.0] * len(stages), [list[Action]() for _ in stages]
    ended: dict[Action, float] = {}
    left = {action: len(before) for action, before in plan.waits.items()}
    followers: dict[Action, list[Action]] = defaultdict(list)
    for action, before in plan.waits.items():
        for earlier in before:
            followers[earlier].append(action)
    ready: list[dict[Action, float]] = [{} for _ in stages]
    for action, count in left.items():
        if count == 0:
            ready[plan.stage_of[action.segment]][action] = 0.0

    def start(i: int, action: Action) -> float:
        return max(clock[i], ready[i][action])

    while any(ready):
        at, i = min((min(start(i, a) for a in own), i) for i, own in enumerate(ready) if own)
        action = min((a for a in ready[i] if start(i, a) == at), key=urgency)
        del ready[i][action]
        orders[i].append(action)
        ended[action] = clock[i] = at + cost(action)
        for later in followers[action]:
            left[later] -= 1
            if left[later] == 0:
                j = plan.stage_of[later.segment]
                ready[j][later] = max(
                    ended[before] + (delay if plan.stage_of[before.segment] != j or before.op in REDUCES else 0)
                    for before in plan.waits[later]
                )
    return orders


# --- messages -------------------------------------------------------------------------------------------------------


def _receivers(plan: Lowering) -> dict[int, list[int]]:
    """For each inlet whose module's input others receive as context: its segment, and the stages of these."""
    wiring, found = plan.wiring, defaultdict[int, set[int]](set)
    for s, segment in enumerate(wiring.segments):
        for source in wiring.sources[segment.module] if segment.inlet else ():
            inlet = wiring.segments_of(source.module)[0]
            if source.module > 0 and plan.stage_of[inlet] != plan.stage_of[s]:
                found[inlet].add(plan.stage_of[s])
    return {inlet: sorted(stages) for inlet, stages in found.items()}


def _with_sends(plan: Lowering, receivers: Mapping[int, list[int]], i: int, actions: list[Action]) -> list[Action]:
    stage, last = plan.placement.stages[i], len(plan.wiring.segments) - 1
    sent: list[Action] = []
    for action in actions:
        op, s, flow, m = action[:4]
        sent.append(action)
        if op is Op.F:
            if s == stage[-1] and s != last:
                sent.append(Action(Op.SEND_F, s, None, m, peer=i + 1))
            sent += [Action(Op.SEND_C, s, None, m, peer=j) for j in receivers.get(s, ())]
        if op is Op.B and flow is not None and s == stage[0] and plan.wiring.flows[s][flow].onward is not None:
            sent.append(Action(Op.SEND_B, s, flow, m, peer=i - 1))
    return sent


def _with_receives(plan: Lowering, i: int, sent: list[Halves]) -> Halves:
    """Receive right before the first use, but in the order in which the sender sends."""
    first_use: dict[Action, int] = {}
    own = [*sent[i].soon, *sent[i].late]
    for place, action in enumerate(own):
        for use in _uses(plan, i, action):
            first_use.setdefault(use, place)
    at: dict[int, list[Action]] = defaultdict(list)
    for j, others in enumerate(sent):
        for op in SENDS:
            actions = [*others.soon, *others.late]
            incoming = [a._replace(op=SENDS[op], peer=j) for a in actions if a.op is op and a.peer == i]
            place = len(own)
            for action in reversed(incoming):
                place = min(place, first_use[action])
                at[place].insert(0, action)
    whole = [[*at[place], before] for place, before in enumerate(own)]
    soon = len(sent[i].soon)
    return Halves([a for each in whole[:soon] for a in each], [a for each in whole[soon:] for a in each])


def _uses(plan: Lowering, i: int, action: Action) -> Iterator[Action]:
    """What an action reads that comes from another rank, as receives."""
    wiring, stage, (op, s, flow, m) = plan.wiring, plan.placement.stages[i], action[:4]
    if op is Op.F:
        if s == stage[0] and i > 0:
            yield Action(Op.RECV_F, s - 1, None, m, peer=i - 1)
        for source in wiring.sources[wiring.segments[s].module] if wiring.segments[s].inlet else ():
            inlet = wiring.segments_of(source.module)[0]
            if source.module > 0 and inlet not in stage:
                yield Action(Op.RECV_C, inlet, None, m, peer=plan.stage_of[inlet])
    if op is Op.B and s == stage[-1] and s + 1 < len(wiring.segments):
        for f, ahead in enumerate(wiring.flows[s + 1]):
            if ahead.onward == flow:
                yield Action(Op.RECV_B, s + 1, f, m, peer=i + 1)


# --- late actions ---------------------------------------------------------------------------------------------------


class Halves(NamedTuple):
    """A rank's actions for one batch: those that it runs at once, and those that it runs during the next batch."""

    soon: list[Action]
    late: list[Action]


def _split_late(far: set[Action], own: list[Action]) -> Halves:
    """What comes after the rank's last forward and waits for other ranks, far away, is late."""
    halves = Halves([], [])
    last = max(place for place, action in enumerate(own) if action.op is Op.F)
    for place, action in enumerate(own):
        of = action
        if action.op is Op.SEND_B:  # goes with its backward
            of = action._replace(op=Op.B, peer=None)
        halves[place > last and of in far].append(action)
    return halves


def _with_reruns(own: Halves, recomputed: frozenset[int]) -> Halves:
    """Second runs, each before the first backward of its segment in the order that the halves have now."""
    whole = list(with_reruns([*own.soon, *own.late], recomputed))
    soon = len(list(with_reruns(own.soon, recomputed)))
    return Halves(whole[:soon], whole[soon:])


def _merged(stage: range, own: Halves, wiring: Wiring) -> Iterator[Action]:
    """The steady loop: the late actions of the batch before, in their order, among those of this batch.

    A step comes before its segment's next forward and loss, and before those that borrow its parameters; what the rank before
    waits for comes first of all, and the rest before the last segment's forward.
    """
    forwards = {action.segment: place for place, action in reversed([*enumerate(own.soon)]) if action.op is Op.F}
    while forwards[stage[0]] > 0 and own.soon[forwards[stage[0]] - 1].op in RECEIVES:
        forwards[stage[0]] -= 1  # there is work to do while the first input is awaited
    moved: dict[int, list[Action]] = defaultdict(list)
    limit = forwards[stage[-1]]
    for action in reversed(own.late):
        if action.op in (Op.S, Op.H, Op.P):
            borrowers = (o.segment for o in wiring.objectives if any(a.donor == action.segment for a in o.loans))
            users = (action.segment, *(borrowers if action.op is Op.S else ()))
            limit = min(limit, *(forwards[s] for s in users if s in forwards))
        elif action.op is Op.SEND_B:
            limit = 0
        moved[limit].insert(0, action._replace(late=True))
    for place, action in enumerate(own.soon):
        yield from moved[place]
        yield action


# --- no deadlock ----------------------------------------------------------------------------------------------------


def in_flight(programmes: tuple[Schedule, ...]) -> int:
    """How many messages of one channel may be sent but not yet received: 2, or the least power of 2 with which no rank stalls.

    Raises:
        RuntimeError: the ranks would wait for each other, or take one message for another, which is an error of localprop's.
    """
    enough = 1 + max(sum(action.op in SENDS for action in programme) for programme in programmes)
    allowed = 2
    while stuck := _stuck(programmes, allowed):
        if allowed > 2 * enough:
            raise RuntimeError(f"The ranks would wait for each other: {', '.join(stuck)}.")
        allowed *= 2
    return allowed


def _stuck(programmes: tuple[Schedule, ...], allowed: int) -> list[str]:
    """Run the programmes of all ranks for three steps on messages alone; who could not go on, and where."""
    lists = [list(unrolled(programme, steps=3)) for programme in programmes]
    queues: dict[tuple[int, int, Op], deque[tuple[int, Action]]] = defaultdict(deque)
    places = [0] * len(lists)
    moved = True
    while moved:
        moved = False
        for i, actions in enumerate(lists):
            while places[i] < len(actions) and _goes(queues, i, *actions[places[i]], allowed):
                places[i] += 1
                moved = True
    ends = zip(lists, places, strict=True)
    return [f"rank {i} at {actions[p][1]}" for i, (actions, p) in enumerate(ends) if p < len(actions)]


def _goes(
    queues: dict[tuple[int, int, Op], deque[tuple[int, Action]]], i: int, step: int, action: Action, allowed: int
) -> bool:
    """Whether rank i can run an action now; its message joins or leaves the channel's queue."""
    if action.op in SENDS and action.peer is not None:
        queue = queues[i, action.peer, action.op]
        if len(queue) == allowed:
            return False
        queue.append((step, action._replace(op=SENDS[action.op], peer=i, late=False)))
    if action.op in RECEIVES and action.peer is not None:
        queue = queues[action.peer, i, RECEIVES[action.op]]
        if not queue:
            return False
        there = queue.popleft()
        if there != (step, action._replace(late=False)):
            raise RuntimeError(f"Rank {i} would take {there[1]} of step {there[0]} for {action} of step {step}.")
    return True
