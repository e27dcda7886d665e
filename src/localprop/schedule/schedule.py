"""The schedule: one training step as a list of actions, in one total order, worked out before the
first step.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from localprop.errors import BadInput, check
from localprop.schedule.wiring import Objective, Wiring

__all__ = ["Schedule"]


ActionCost = Callable[["Action"], float]


class Op(StrEnum):
    """The instruction set of the engine."""

    F = "F"  # forward of a segment
    L = "L"  # local loss at the end of a segment: forward and backward; gradients accumulate
    H = "H"  # optimizer step of the loss's own parameters (auxiliary network, loss)
    B = "B"  # backward of one flow through a segment
    W = "W"  # gradients of a segment's weights, of all its flows at once
    S = "S"  # optimizer step of a segment's parameters
    P = "P"  # copy, or average, of network parameters into an auxiliary network

    # Between ranks, with torch.distributed.pipelining's names. Both sides name a message after
    # what made it.
    SEND_F = "SEND_F"  # a segment's output, down the pipe
    RECV_F = "RECV_F"
    SEND_B = "SEND_B"  # the gradient at a segment's input, from one flow's backward, up the pipe
    RECV_B = "RECV_B"
    SEND_C = "SEND_C"  # a module's input, which a later module receives as context
    RECV_C = "RECV_C"

    # Sums of gradients over the replicas: begun here, ended by the step.
    REDUCE_H = "REDUCE_H"
    REDUCE_S = "REDUCE_S"


SENDS = {Op.SEND_F: Op.RECV_F, Op.SEND_B: Op.RECV_B, Op.SEND_C: Op.RECV_C}
RECEIVES = {receive: send for send, receive in SENDS.items()}
REDUCES = {Op.REDUCE_H: Op.H, Op.REDUCE_S: Op.S}
# They read the graph of a segment, and its parameters.
BACKWARDS = (Op.B, Op.W)
STEPS = (Op.H, Op.S, Op.P)  # they change parameters


class Action(NamedTuple):
    """One instruction. It prints as in torch.distributed.pipelining, `{segment}{op}{micro-batch}`;
    micro-batch 0 is not written.

    =============  ================================================================
    3F2            the forward of segment 3 in micro-batch 2
    3B             the backward of segment 3 in micro-batch 0, of its only flow
    3B2.1          the backward of flow 1 through it, one of several, in micro-batch 2
    3W2            the gradients of its weights, where these are made once for all flows
    3L, 3L.1       of two losses at the end of segment 3 the first and the second
    3H, 3H.1       the steps of their parameters
    2SEND_F>1      send the output of segment 2 to rank 1, which runs 2RECV_F<0
    1S'            deferred: step segment 1 for the batch before
    =============  ================================================================

    Attributes:
        op: what to do.
        segment: where.
        flow: of a backward, the flow, where the segment has several; of a loss and its step, which
            one of several.
        microbatch: the micro-batch.
        peer: the other rank of a message.
        deferred: whether the action belongs to the batch before.
    """

    op: Op
    segment: int
    flow: int | None = None
    microbatch: int = 0
    peer: int | None = None
    deferred: bool = False

    def __str__(self) -> str:
        flow = "" if self.flow is None else f".{self.flow}"
        peer = "" if self.peer is None else f"{'>' if self.op in SENDS else '<'}{self.peer}"
        return f"{self.segment}{self.op}{self.microbatch or ''}{flow}{peer}" + (
            "'" if self.deferred else ""
        )

    @classmethod
    def parse(cls, text: str) -> Action:
        """The action that prints as `text`.

        Raises:
            BadInput: the text is no action.
        """
        match = re.fullmatch(rf"(\d+)({'|'.join(Op)})(\d+)?(?:\.(\d+))?(?:([<>])(\d+))?(')?", text)
        if match is None or match[5] != _arrow_of(Op(match[2])):
            raise BadInput(
                f"{text!r} is no action: one reads like 3F, 3B2 (micro-batch 2), 3B2.1 (flow 1), "
                "3SEND_F>1 or 3S'."
            )
        segment, microbatch, flow, peer = (
            None if match[i] is None else int(match[i]) for i in (1, 3, 4, 6)
        )
        assert segment is not None
        return cls(Op(match[2]), segment, flow, microbatch or 0, peer, match[7] is not None)


def _arrow_of(op: Op) -> str | None:
    """The arrow that an action of this kind has before its peer."""
    return ">" if op in SENDS else "<" if op in RECEIVES else None


class Schedule(tuple[Action, ...]):
    """Actions in the order in which they run. str() prints them, :meth:`parse` reads that back.

    Of what is ready, steps run first, then backwards, weights, losses, then the oldest forward, so
    that activations and gradients die as early as they can. Weights wait for backwards, whose
    gradients others may wait for. The forwards of one micro-batch are the network's own and follow
    each other.

    Example (two modules, each trained by its own loss alone)::

        0F 0L 0H 0B 0S 1F 1L 1B 1S
    """

    def __str__(self) -> str:
        return " ".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """The schedule that prints as `text`; BadInput for anything else."""
        return cls(Action.parse(word) for word in text.split())

    @classmethod
    def compile(cls, wiring: Wiring, microbatches: int = 1) -> Schedule:
        """Compile a wiring.

        Args:
            wiring: segments, flows and objectives.
            microbatches: how many parts a batch is run in; gradients accumulate over them.

        Raises:
            BadInput: fewer than one micro-batch.
        """
        check([f"microbatches={microbatches} must be 1 or more."] if microbatches < 1 else [])
        whole = (range(len(wiring.segments)),)
        waits = find_dependencies(wiring, microbatches, whole)
        return cls(_in_order(waits, steps_last=wiring.atomic))


# Steps and backwards free memory and forwards take it, so forwards come last. Sums over replicas
# begin at once, since they run while others compute.
URGENCY = {
    **dict.fromkeys((Op.REDUCE_H, Op.REDUCE_S, Op.P, Op.H, Op.S), 0),
    Op.B: 1,
    Op.W: 2,
    Op.L: 3,
    Op.F: 4,
}


def _in_order(waits: dict[Action, set[Action]], *, steps_last: bool) -> Iterator[Action]:
    """List scheduling: again and again the most urgent action that is ready.

    Args:
        waits: for each action, those that come before it.
        steps_last: whether H, S and P come after all else, for which none of them is needed.
    """
    followers: dict[Action, list[Action]] = {action: [] for action in waits}
    for action, before in waits.items():
        for earlier in before:
            followers[earlier].append(action)
    left = {action: len(before) for action, before in waits.items()}
    ready = [action for action, count in left.items() if count == 0]
    while ready:
        # Ties go to the one that was ready first. No order here comes from a set, so all ranks
        # work out the same list.
        action = min(ready, key=lambda each: (steps_last and each.op in STEPS, *urgency(each)))
        ready.remove(action)
        yield action
        for later in followers[action]:
            left[later] -= 1
            if left[later] == 0:
                ready.append(later)


def urgency(action: Action) -> tuple[int, int, int, int]:
    """Which of several ready actions runs first: the one with the smallest key."""
    return (
        URGENCY[action.op],
        action.microbatch,
        action.segment,
        -1 if action.flow is None else action.flow,
    )


def unroll(rank_schedule: Schedule, steps: int) -> Iterator[tuple[int, Action]]:
    """The actions of some steps, each with its batch.

    The first step has no deferred actions; those of the last batch run at the end.
    """
    for step in range(steps):
        yield from (
            (step - action.deferred, action)
            for action in rank_schedule
            if step or not action.deferred
        )
    yield from ((steps - 1, action) for action in rank_schedule if action.deferred)


def find_dependencies(
    wiring: Wiring, microbatches: int, stages: Iterable[range]
) -> dict[Action, set[Action]]:
    """For each action of a step, the actions that come before it.

    Args:
        wiring: segments, flows and objectives.
        microbatches: how many.
        stages: the segments that run on one rank each; there, forwards of one micro-batch follow
            each other.
    """
    waits: dict[Action, set[Action]] = {}
    for m in range(microbatches):
        for s in range(len(wiring.segments)):
            waits[Action(Op.F, s, None, m)] = {Action(Op.F, s - 1, None, m)} if s else set()
        for objective in wiring.objectives:
            waits[Action(Op.L, *objective.key, m)] = {Action(Op.F, objective.segment, None, m)}
        for s, flows in enumerate(wiring.flows):
            is_once = s in wiring.weights_once
            for f, flow in enumerate(flows):
                # A flow that ends where weights are made once leaves all to W.
                if flow.onward is not None or not is_once:
                    waits[Action(Op.B, s, wiring.flow_number(s, f), m)] = set(
                        find_contributors(wiring, s, f, m)
                    )
            if is_once:
                waits[Action(Op.W, s, None, m)] = set(find_weight_contributors(wiring, s, m))
    for stage in stages:
        for m in range(1, microbatches):
            # A forward is one call of the network. Two of them cannot take turns, since hooks can
            # neither suspend nor leave a call and come back.
            waits[Action(Op.F, stage[0], None, m)].add(Action(Op.F, stage[-1], None, m - 1))
    _add_steps(waits, wiring, microbatches)
    return waits


def find_contributors(wiring: Wiring, segment: int, flow: int, microbatch: int) -> Iterator[Action]:
    """The losses and backwards whose errors a flow sums."""
    for objective in wiring.objectives_of(segment):
        if objective.flow == flow:
            yield Action(Op.L, *objective.key, microbatch)
    if segment + 1 < len(wiring.segments):
        for f, ahead in enumerate(wiring.flows[segment + 1]):
            if ahead.onward == flow:
                yield Action(Op.B, segment + 1, wiring.flow_number(segment + 1, f), microbatch)


def find_weight_contributors(wiring: Wiring, segment: int, microbatch: int) -> Iterator[Action]:
    """What a W waits for: the backwards of flows that go onward, whose gradients they keep for it,
    and the losses and backwards whose errors it sums for the flow that ends there.
    """
    for number, flow in enumerate(wiring.flows[segment]):
        if flow.train and flow.onward is None:
            yield from find_contributors(wiring, segment, number, microbatch)
        elif flow.train:
            yield Action(Op.B, segment, wiring.flow_number(segment, number), microbatch)


def _add_steps(waits: dict[Action, set[Action]], wiring: Wiring, microbatches: int) -> None:
    for objective in wiring.objectives:
        if objective.trained:
            waits[Action(Op.H, *objective.key)] = _losses(objective, microbatches)
    # By segment: what makes the gradients that its step uses, or needs the parameters as they are.
    # A tied parameter's step waits for the backwards of all its uses.
    made_by: dict[int, set[Action]] = defaultdict(set)
    for action in waits:
        if action.op in BACKWARDS:
            for step in wiring.steps_of(action.segment):
                made_by[step].add(action)
    for objective in wiring.objectives:
        if objective.second_order:
            for step in wiring.steps_of(objective.segment):
                made_by[step] |= _losses(objective, microbatches)
    for s, flows in enumerate(wiring.flows):
        # A segment that gradients only pass, or never reach, has no step.
        trains = wiring.has_second_order_loss(s) or any(flow.train for flow in flows)
        if trains and s in wiring.steps_of(s):
            waits[Action(Op.S, s)] = made_by[s]
    for objective in wiring.objectives:
        _add_copies(waits, objective, microbatches)


def _losses(objective: Objective, microbatches: int) -> set[Action]:
    return {Action(Op.L, *objective.key, m) for m in range(microbatches)}


def _add_copies(waits: dict[Action, set[Action]], objective: Objective, microbatches: int) -> None:
    """A copy is refreshed after its last use in the step, and before or after its source's step."""
    if not objective.copies:
        return
    copies = Action(Op.P, *objective.key)
    waits[copies] = _losses(objective, microbatches)
    for resolved in objective.copies:
        # No step has segment -1: a source that nothing trains has none to wait for.
        steps = Action(Op.S, -1 if resolved.source_segment is None else resolved.source_segment)
        if steps in waits and resolved.copy.lag:
            waits[steps].add(copies)
        elif steps in waits:
            waits[copies].add(steps)
