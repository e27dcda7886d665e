"""Messages between ranks: the sends and receives among the actions of each rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from localprop.schedule.deferral import SplitActions
from localprop.schedule.placement import Placement
from localprop.schedule.schedule import (
    BACKWARDS,
    SENDS,
    Action,
    Op,
    find_contributors,
    find_weight_contributors,
)
from localprop.schedule.wiring import Wiring

# --- sends ------------------------------------------------------------------------------------


def insert_sends(
    wiring: Wiring, placement: Placement, ordered: Sequence[Sequence[Action]]
) -> list[list[Action]]:
    """The actions of each rank with its sends, each right after the action that makes the message.

    Args:
        wiring: flows and contexts.
        placement: the segments of each rank.
        ordered: the actions of each rank in their order.
    """
    receivers = _find_context_receivers(wiring, placement)
    complete = []
    for rank, actions in enumerate(ordered):
        with_sends: list[Action] = []
        for action in actions:
            with_sends.append(action)
            with_sends += _list_sends(wiring, placement.stages[rank], rank, action)
            if action.op is Op.F:
                with_sends += [
                    Action(Op.SEND_C, action.segment, None, action.microbatch, peer=receiver)
                    for receiver in receivers.get(action.segment, ())
                ]
        complete.append(with_sends)
    return complete


def _list_sends(wiring: Wiring, stage: range, rank: int, action: Action) -> Iterator[Action]:
    """The message to a neighbour that an action makes: an output or a gradient."""
    op, s, flow, m = action[:4]
    if op is Op.F and s == stage[-1] and s + 1 < len(wiring.segments):
        yield Action(Op.SEND_F, s, None, m, peer=rank + 1)
    if op is Op.B and s == stage[0] and wiring.flows[s][flow or 0].onward is not None:
        yield Action(Op.SEND_B, s, flow, m, peer=rank - 1)


def _find_context_receivers(wiring: Wiring, placement: Placement) -> dict[int, list[int]]:
    """For each segment whose input is a context on other ranks, these ranks."""
    found: dict[int, set[int]] = defaultdict(set)
    for s in range(len(wiring.segments)):
        rank = placement.stage_of(s)
        for source in _list_context_segments(wiring, s):
            if placement.stage_of(source) != rank:
                found[source].add(rank)
    return {source: sorted(ranks) for source, ranks in found.items()}


def _list_context_segments(wiring: Wiring, s: int) -> Iterator[int]:
    """The segments whose inputs segment s receives as context."""
    segment = wiring.segments[s]
    if segment.starts_module:
        for source in wiring.sources[segment.module]:
            # Module 0's input is the network's input, which every rank has.
            if source.module > 0:
                yield wiring.segments_of(source.module)[0]


# --- receives ---------------------------------------------------------------------------------


def insert_receives(
    wiring: Wiring, placement: Placement, split: Sequence[SplitActions]
) -> Iterator[SplitActions]:
    """The actions of each rank with its receives, each before its first use and in the sender's
    order.

    A channel has no names for its messages: the receiver takes them in the order in which they were
    sent. Where a later message is used first, the earlier ones are received before it, too::

        sent             a  b  c
        first used at    9  4  7
        received before  4  4  7     the minimum over this message and all later ones

    Args:
        wiring: flows and contexts.
        placement: the segments of each rank.
        split: the actions of all ranks with their sends.
    """
    incoming = _find_incoming(split)
    for rank, mine in enumerate(split):
        actions = mine.join()
        first_uses = _find_first_uses(wiring, placement, rank, actions)
        receives_before: dict[int, list[Action]] = defaultdict(list)
        for channel in incoming[rank]:
            uses_backwards = [first_uses[receive] for receive in reversed(channel)]
            positions_backwards = accumulate(uses_backwards, min)
            for receive, position in zip(reversed(channel), positions_backwards, strict=True):
                receives_before[position].insert(0, receive)
        current = len(mine.current)
        yield SplitActions(
            current=_interleave(receives_before, actions, range(current)),
            deferred=_interleave(receives_before, actions, range(current, len(actions))),
        )


def _find_incoming(split: Sequence[SplitActions]) -> list[list[list[Action]]]:
    """For each rank, the receives of each of its channels, in the sender's order."""
    incoming: list[list[list[Action]]] = [[] for _ in split]
    for sender, actions in enumerate(split):
        channels: dict[tuple[Op, int | None], list[Action]] = defaultdict(list)
        for action in actions.join():
            if action.op in SENDS:
                receive = action._replace(op=SENDS[action.op], peer=sender)
                channels[action.op, action.peer].append(receive)
        for send in SENDS:
            for (op, receiver), channel in channels.items():
                if op is send and receiver is not None:
                    incoming[receiver].append(channel)
    return incoming


def _interleave(
    receives_before: Mapping[int, Sequence[Action]], actions: Sequence[Action], positions: range
) -> list[Action]:
    """The actions at some positions, each after the receives that come right before it."""
    result: list[Action] = []
    for position in positions:
        result += receives_before.get(position, ())
        result.append(actions[position])
    return result


def _find_first_uses(
    wiring: Wiring, placement: Placement, rank: int, actions: Sequence[Action]
) -> dict[Action, int]:
    """For each message that a rank receives, the position of the first action that reads it."""
    first_uses: dict[Action, int] = {}
    for position, action in enumerate(actions):
        for receive in _list_reads(wiring, placement, rank, action):
            first_uses.setdefault(receive, position)
    return first_uses


def _list_reads(
    wiring: Wiring, placement: Placement, rank: int, action: Action
) -> Iterator[Action]:
    """The messages from other ranks that an action reads, as receives."""
    stage, (op, s, flow, m) = placement.stages[rank], action[:4]
    if op is Op.F and s == stage[0] and rank > 0:
        yield Action(Op.RECV_F, s - 1, None, m, peer=rank - 1)
    if op is Op.F:
        for source in _list_context_segments(wiring, s):
            if source not in stage:
                yield Action(Op.RECV_C, source, None, m, peer=placement.stage_of(source))
    if op in BACKWARDS and s == stage[-1]:
        contributors = (
            find_contributors(wiring, s, flow or 0, m)
            if op is Op.B
            else find_weight_contributors(wiring, s, m)
        )
        for contributor in contributors:
            if contributor.segment not in stage:
                yield contributor._replace(op=Op.RECV_B, peer=rank + 1)
