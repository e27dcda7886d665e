"""Deferred actions: work that a rank does during the next batch, because it waits for other ranks.

An example with backward links of one layer, on two ranks. Rank 0 has finished its own work when
the gradient of loss 1 is on its way. It does not wait: it begins the next batch, and runs the
backward and the step that need this gradient there, marked with '::

            batch t                                        batch t + 1
    rank 0  0F .......... 1F 1SEND_F 1L 1H 1B.0 0B 0S   |  0F 2RECV_B' 1B.1' 1S' 1F 1SEND_F ...
                                │                             ▲
    rank 1                      └─► 1RECV_F 2F 2L 2B 2SEND_B ─┘ 2S          |  1RECV_F 2F ...

The numbers stay those of one process: segment 1 steps (1S') before it runs on the next batch (1F).
Only segment 0 runs ahead, and it has had its own step (0S) already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import NamedTuple

from localprop.schedule.placement import Placement
from localprop.schedule.schedule import BACKWARDS, RECEIVES, REDUCES, Action, Op
from localprop.schedule.wiring import Wiring


class SplitActions(NamedTuple):
    """A rank's actions for one batch, in their order.

    Attributes:
        current: the actions that the rank runs during this batch.
        deferred: the actions that follow, which it runs during the next batch.
    """

    current: list[Action]
    deferred: list[Action]

    def join(self) -> list[Action]:
        """All actions in their order."""
        return [*self.current, *self.deferred]


# --- which actions are deferred ---------------------------------------------------------------


def find_remote_dependents(
    waits: Mapping[Action, set[Action]], placement: Placement
) -> set[Action]:
    """The backwards and steps that need a gradient from the next rank or from another replica.

    Args:
        waits: for each action, the actions that come before it.
        placement: the segments of each rank.
    """
    remote: set[Action] = set()
    for action in TopologicalSorter(waits).static_order():
        # Forwards wait for the rank before, too. But these messages come from the same batch, and
        # a batch cannot go on without its forwards, so forwards are never deferred.
        if action.op is Op.F:
            continue
        rank = placement.stage_of(action.segment)
        for before in waits[action]:
            is_elsewhere = placement.stage_of(before.segment) != rank
            from_other_rank = action.op in BACKWARDS and is_elsewhere
            if from_other_rank or before in remote or before.op in REDUCES:
                remote.add(action)
    return remote


def split_deferred(actions: Sequence[Action], remote: set[Action]) -> SplitActions:
    """Defer what comes after the rank's last forward and depends on other ranks.

    Before the last forward nothing is deferred: this work fills the time between forwards.

    Args:
        actions: a rank's actions with its sends.
        remote: the actions that depend on other ranks.
    """
    split = SplitActions([], [])
    last_forward = max(i for i, action in enumerate(actions) if action.op is Op.F)
    for i, action in enumerate(actions):
        # A gradient is sent when its backward runs.
        cause = action._replace(op=Op.B, peer=None) if action.op is Op.SEND_B else action
        if i > last_forward and cause in remote:
            split.deferred.append(action)
        else:
            split.current.append(action)
    return split


# --- the steady loop --------------------------------------------------------------------------


def merge_deferred(wiring: Wiring, stage: range, split: SplitActions) -> Iterator[Action]:
    """The steady loop: this batch's current actions, and the batch before's deferred ones.

    Each deferred action comes as late as it may, so that messages have time to arrive, and before
    its deadline: a position among the current actions. Deferred actions keep their order, so an
    action also comes before the deadlines of those that follow it::

        current          0F                1F  1SEND_F  1L ...
                          ▲                 ▲ deadline of 1S': the next forward with its weights
        deferred          2RECV_B' 1B.1' 1S'

    Args:
        wiring: the steps that update what each segment uses, and the copies of objectives.
        stage: the rank's segments.
        split: the rank's actions with sends and receives.
    """
    forwards = _find_forwards(stage, split.current)
    deferred_before: dict[int, list[Action]] = defaultdict(list)
    # At the latest before the last forward: after it, backwards of this batch wait for other ranks.
    position = forwards[stage[-1]]
    for action in reversed(split.deferred):
        position = min([position, *_find_deadlines(wiring, action, forwards)])
        deferred_before[position].insert(0, action._replace(deferred=True))
    for i, action in enumerate(split.current):
        yield from deferred_before[i]
        yield action


def _find_forwards(stage: range, current: Sequence[Action]) -> dict[int, int]:
    """The position of each segment's first forward."""
    forwards: dict[int, int] = {}
    for i, action in enumerate(current):
        if action.op is Op.F:
            forwards.setdefault(action.segment, i)
    # Deferred work goes in front of the receive of the first input, and not only in front of the
    # forward: the rank has something to do while it waits for that input.
    while forwards[stage[0]] > 0 and current[forwards[stage[0]] - 1].op in RECEIVES:
        forwards[stage[0]] -= 1
    return forwards


def _find_deadlines(wiring: Wiring, action: Action, forwards: Mapping[int, int]) -> Iterator[int]:
    """The positions among the current actions that a deferred action must come before."""
    if action.op is Op.SEND_B:
        yield 0  # the rank before waits for this gradient
    if action.op not in (Op.S, Op.H, Op.P):
        return
    # A step comes before the next use of what it changes. A segment's forward comes before the
    # losses at its end, so its position covers the steps of heads (H) and copies (P) as well.
    yield forwards[action.segment]
    if action.op is Op.S:
        for s, at in forwards.items():
            copies = (copy for each in wiring.objectives_of(s) for copy in each.copies)
            reads = any(copy.source_segment == action.segment for copy in copies)
            if reads or action.segment in wiring.steps_of(s):
                yield at
