"""The schedule: one training step as a list of actions, in one total order, worked out before the first step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from localprop.errors import BadInput, check
from localprop.step.wiring import Objective, Wiring


class Op(StrEnum):
    """The instruction set of the engine."""

    F = "F"  # forward of a segment; a second one of the same segment and micro-batch runs it again, with a graph
    L = "L"  # local loss at a segment's end: forward and backward, gradients accumulate
    H = "H"  # step of the objective's own parameters
    B = "B"  # backward of one flow through a segment
    S = "S"  # step of a segment's parameters
    P = "P"  # copy, or average, of the parameters that an objective borrows

    # Between ranks; torch.distributed.pipelining's names. A message is named after what made it, on both sides.
    SEND_F = "SEND_F"  # a segment's output, down the pipe
    RECV_F = "RECV_F"
    SEND_B = "SEND_B"  # the error that the backward of a flow leaves at a segment's input, up the pipe
    RECV_B = "RECV_B"
    SEND_C = "SEND_C"  # the input of a module that some later module receives as context
    RECV_C = "RECV_C"
    REDUCE_H = "REDUCE_H"  # sum of an objective's gradients over the replicas, begun here and ended by H
    REDUCE_S = "REDUCE_S"  # likewise of a segment's, ended by S


SENDS = {Op.SEND_F: Op.RECV_F, Op.SEND_B: Op.RECV_B, Op.SEND_C: Op.RECV_C}
RECEIVES = {receive: send for send, receive in SENDS.items()}
REDUCES = {Op.REDUCE_H: Op.H, Op.REDUCE_S: Op.S}


class Action(NamedTuple):
    """One instruction: `3B1/2` is the backward of flow 1 through segment 3 in micro-batch 2 (micro-batch 0 is not written).

    Of several losses at one segment's end, `3L` is the first and `3L1` the second; their steps likewise, `3H` and `3H1`.

    `2SEND_F>1` sends the output of segment 2 to rank 1, which runs `2RECV_F<0`. An apostrophe marks an action of the batch
    before: `1S'` steps segment 1 by the errors of the batch before, which came late.
    """

    op: Op
    segment: int
    flow: int | None = None
    microbatch: int = 0
    peer: int | None = None
    late: bool = False

    def __str__(self) -> str:
        flow = "" if self.flow is None else str(self.flow)
        peer = "" if self.peer is None else f"{'>' if self.op in SENDS else '<'}{self.peer}"
        part = f"/{self.microbatch}" if self.microbatch else ""
        return f"{self.segment}{self.op}{flow}{peer}{part}" + ("'" if self.late else "")

    @classmethod
    def parse(cls, text: str) -> Action:
        """The action that prints as `text`.

        Raises:
            BadInput: the text is no action.
        """
        match = re.fullmatch(rf"(\d+)({'|'.join(Op)})(\d+)?(?:([<>])(\d+))?(?:/(\d+))?(')?", text)
        if match is None or not _is_whole(Op(match[2]), match[3], match[4]):
            raise BadInput(
                [f"{text!r} is no action: one reads like 3F, 3B1 (backwards have a flow), 3B1/2, 3SEND_F>1 or 3S'."]
            )
        segment, flow, peer, part = (None if match[i] is None else int(match[i]) for i in (1, 3, 5, 6))
        assert segment is not None
        return cls(Op(match[2]), segment, flow, part or 0, peer, match[7] is not None)


def _is_whole(op: Op, flow: str | None, arrow: str | None) -> bool:
    """Whether an action of this kind has the flow, and the arrow to or from a peer, that it must have."""
    needs_flow = op in (Op.B, Op.SEND_B, Op.RECV_B)
    needs_arrow = ">" if op in SENDS else "<" if op in RECEIVES else None
    return needs_flow == (flow is not None) and needs_arrow == arrow


class Schedule(tuple[Action, ...]):
    """Actions in the order in which they run. str() prints them, :meth:`parse` reads that back.

    Of what is ready, steps run first, then backwards, then losses, then the oldest forward, so that activations and
    gradients die as early as they can. The forwards of one micro-batch are the network's own and follow each other.

    Example (two modules, each trained by its own loss alone)::

        0F 0L 0H 0B0 0S 1F 1L 1B0 1S
    """

    def __str__(self) -> str:
        return " ".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """The schedule that prints as `text`; BadInput for anything else."""
        return cls(Action.parse(word) for word in text.split())

    @classmethod
    def of(cls, wiring: Wiring, microbatches: int = 1, recomputed: frozenset[int] = frozenset()) -> Schedule:
        """Compile a wiring.

        Args:
            wiring: segments, flows and objectives.
            microbatches: how many parts a batch is run in; gradients accumulate over them.
            recomputed: segments that are run again before their backward.

        Raises:
            BadInput: fewer than one micro-batch.
        """
        check([f"microbatches={microbatches} must be 1 or more."] if microbatches < 1 else [])
        whole = (range(len(wiring.segments)),)
        return cls(with_reruns(_in_order(waits_of(wiring, microbatches, whole)), recomputed))


URGENCY = {Op.REDUCE_H: 0, Op.REDUCE_S: 0, Op.P: 0, Op.H: 0, Op.S: 0, Op.B: 1, Op.L: 2, Op.F: 3}


def _in_order(waits: dict[Action, set[Action]]) -> Iterator[Action]:
    """List scheduling: again and again the most urgent action that is ready."""
    followers: dict[Action, list[Action]] = {action: [] for action in waits}
    for action, before in waits.items():
        for earlier in before:
            followers[earlier].append(action)
    left = {action: len(before) for action, before in waits.items()}
    ready = [action for action, count in left.items() if count == 0]
    while ready:
        action = min(ready, key=urgency)
        ready.remove(action)
        yield action
        for later in followers[action]:
            left[later] -= 1
            if left[later] == 0:
                ready.append(later)


def urgency(action: Action) -> tuple[int, int, int, int]:
    """Which of several ready actions runs first: the one with the smallest key."""
    return URGENCY[action.op], action.microbatch, action.segment, -1 if action.flow is None else action.flow


def with_reruns(actions: Iterable[Action], recomputed: frozenset[int]) -> Iterator[Action]:
    """The actions with each recomputed segment's second forward, right before its first backward."""
    done: set[tuple[int, int]] = set()
    for action in actions:
        place = (action.segment, action.microbatch)
        if action.op is Op.B and action.segment in recomputed and place not in done:
            done.add(place)
            yield Action(Op.F, action.segment, None, action.microbatch)
        yield action


def unrolled(programme: Schedule, steps: int) -> Iterator[tuple[int, Action]]:
    """The actions of some steps, each with its batch: in the first step nothing is late, at the end what is late is run."""
    for step in range(steps):
        yield from ((step - action.late, action) for action in programme if step or not action.late)
    yield from ((steps - 1, action) for action in programme if action.late)


def waits_of(wiring: Wiring, microbatches: int, stages: Iterable[range]) -> dict[Action, set[Action]]:
    """For each action of a step, the actions that come before it.

    Args:
        wiring: segments, flows and objectives.
        microbatches: how many.
        stages: the segments that run on one rank each; there, forwards of one micro-batch follow each other.
    """
    waits: dict[Action, set[Action]] = {}
    for m in range(microbatches):
        for s in range(len(wiring.segments)):
            waits[Action(Op.F, s, None, m)] = {Action(Op.F, s - 1, None, m)} if s else set()
        for objective in wiring.objectives:
            waits[Action(Op.L, *objective.place, m)] = {Action(Op.F, objective.segment, None, m)}
        for s, flows in enumerate(wiring.flows):
            for f in range(len(flows)):
                waits[Action(Op.B, s, f, m)] = set(feeders(wiring, s, f, m))
    for stage in stages:
        for m in range(1, microbatches):
            waits[Action(Op.F, stage[0], None, m)].add(Action(Op.F, stage[-1], None, m - 1))
    _add_steps(waits, wiring, microbatches)
    return waits


def feeders(wiring: Wiring, segment: int, flow: int, microbatch: int) -> Iterator[Action]:
    """The losses and backwards whose errors a flow sums."""
    for objective in wiring.objectives:
        if objective.segment == segment and objective.flow == flow:
            yield Action(Op.L, *objective.place, microbatch)
    if segment + 1 < len(wiring.segments):
        for f, ahead in enumerate(wiring.flows[segment + 1]):
            if ahead.onward == flow:
                yield Action(Op.B, segment + 1, f, microbatch)


def _add_steps(waits: dict[Action, set[Action]], wiring: Wiring, microbatches: int) -> None:
    for objective in wiring.objectives:
        if objective.trained:
            waits[Action(Op.H, *objective.place)] = _losses(objective, microbatches)
    for s, flows in enumerate(wiring.flows):
        attached = {a for o in wiring.objectives if o.segment == s and o.attached for a in _losses(o, microbatches)}
        if attached or any(flow.train for flow in flows):
            waits[Action(Op.S, s)] = {a for a in waits if a.op is Op.B and a.segment == s} | attached
    for objective in wiring.objectives:
        _add_loans(waits, objective, microbatches)


def _losses(objective: Objective, microbatches: int) -> set[Action]:
    return {Action(Op.L, *objective.place, m) for m in range(microbatches)}


def _add_loans(waits: dict[Action, set[Action]], objective: Objective, microbatches: int) -> None:
    """What is borrowed is copied after its borrower's last use of the step; before or after its owner's step."""
    if not objective.loans:
        return
    copies = Action(Op.P, *objective.place)
    waits[copies] = _losses(objective, microbatches)
    for loan in objective.loans:
        steps = Action(Op.S, -1 if loan.donor is None else loan.donor)
        if steps in waits and loan.borrow.lag:
            waits[steps].add(copies)
        elif steps in waits:
            waits[copies].add(steps)
