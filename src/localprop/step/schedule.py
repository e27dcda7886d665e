"""The schedule: one training step as a list of actions, in one total order, worked out before the first step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from localprop.errors import BadInput, check
from localprop.step.wiring import Wiring


class Op(StrEnum):
    """The instruction set of the engine."""

    F = "F"  # forward of a segment; a second one of the same segment and micro-batch runs it again, with a graph
    L = "L"  # local loss at a segment's end: forward and backward, gradients accumulate
    H = "H"  # step of the objective's own parameters
    B = "B"  # backward of one flow through a segment
    S = "S"  # step of a segment's parameters


class Action(NamedTuple):
    """One instruction: `3B1/2` is the backward of flow 1 through segment 3 in micro-batch 2 (micro-batch 0 is not written)."""

    op: Op
    segment: int
    flow: int | None = None
    microbatch: int = 0

    def __str__(self) -> str:
        flow = "" if self.flow is None else str(self.flow)
        return f"{self.segment}{self.op}{flow}" + (f"/{self.microbatch}" if self.microbatch else "")

    @classmethod
    def parse(cls, text: str) -> Action:
        """The action that prints as `text`.

        Raises:
            BadInput: the text is no action.
        """
        match = re.fullmatch(r"(\d+)([FLHBS])(\d+)?(?:/(\d+))?", text)
        if match is None or (match[2] == "B") != (match[3] is not None):
            raise BadInput([f"{text!r} is no action: one reads like 3F, 3B1 (B alone has a flow) or 3B1/2."])
        return cls(Op(match[2]), int(match[1]), None if match[3] is None else int(match[3]), int(match[4] or 0))


class Schedule(tuple[Action, ...]):
    """Actions in the order in which they run. str() prints them, :meth:`parse` reads that back.

    Of what is ready, steps run first, then backwards, then losses, then the oldest forward, so that activations and
    gradients die as early as they can. The forwards of one micro-batch are the network's own and follow each other.

    Example (greedy with two modules)::

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
        return cls(_with_reruns(_in_order(_waits(wiring, microbatches)), recomputed))


_URGENCY = {Op.H: 0, Op.S: 0, Op.B: 1, Op.L: 2, Op.F: 3}


def _in_order(waits: dict[Action, set[Action]]) -> Iterator[Action]:
    """List scheduling: again and again the most urgent action that is ready."""
    followers: dict[Action, list[Action]] = {action: [] for action in waits}
    for action, before in waits.items():
        for earlier in before:
            followers[earlier].append(action)
    left = {action: len(before) for action, before in waits.items()}
    ready = [action for action, count in left.items() if count == 0]
    while ready:
        action = min(ready, key=_key)
        ready.remove(action)
        yield action
        for later in followers[action]:
            left[later] -= 1
            if left[later] == 0:
                ready.append(later)


def _key(action: Action) -> tuple[int, int, int, int]:
    return _URGENCY[action.op], action.microbatch, action.segment, -1 if action.flow is None else action.flow


def _with_reruns(actions: Iterator[Action], recomputed: frozenset[int]) -> Iterator[Action]:
    """A recomputed segment runs forward again right before its first backward."""
    done: set[tuple[int, int]] = set()
    for action in actions:
        place = (action.segment, action.microbatch)
        if action.op is Op.B and action.segment in recomputed and place not in done:
            done.add(place)
            yield Action(Op.F, action.segment, None, action.microbatch)
        yield action


def _waits(wiring: Wiring, microbatches: int) -> dict[Action, set[Action]]:
    """For each action, the actions that come before it."""
    waits: dict[Action, set[Action]] = {}
    last = len(wiring.segments) - 1
    for m in range(microbatches):
        for s in range(last + 1):
            before = Action(Op.F, s - 1, None, m) if s else Action(Op.F, last, None, m - 1)
            waits[Action(Op.F, s, None, m)] = {before} if s or m else set()
        for objective in wiring.objectives:
            waits[Action(Op.L, objective.segment, None, m)] = {Action(Op.F, objective.segment, None, m)}
        for s, flows in enumerate(wiring.flows):
            for f in range(len(flows)):
                waits[Action(Op.B, s, f, m)] = set(_feeders(wiring, s, f, m))
    _add_steps(waits, wiring, microbatches)
    return waits


def _feeders(wiring: Wiring, segment: int, flow: int, microbatch: int) -> Iterator[Action]:
    """The losses and backwards whose errors a flow sums."""
    for objective in wiring.objectives:
        if objective.segment == segment and objective.flow == flow:
            yield Action(Op.L, segment, None, microbatch)
    if segment + 1 < len(wiring.segments):
        for f, ahead in enumerate(wiring.flows[segment + 1]):
            if ahead.onward == flow:
                yield Action(Op.B, segment + 1, f, microbatch)


def _add_steps(waits: dict[Action, set[Action]], wiring: Wiring, microbatches: int) -> None:
    for objective in wiring.objectives:
        if objective.trained:
            waits[Action(Op.H, objective.segment)] = {
                Action(Op.L, objective.segment, None, m) for m in range(microbatches)
            }
    for s, flows in enumerate(wiring.flows):
        if any(flow.train for flow in flows):
            waits[Action(Op.S, s)] = {a for a in waits if a.op is Op.B and a.segment == s}
