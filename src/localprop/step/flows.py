"""Flows: errors whose remaining paths are equal up to a factor travel together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from localprop.rule.table import CreditTable, Entry


class Flow(NamedTuple):
    """Errors that travel together from a segment on: those of losses whose remaining paths are equal up to a factor.

    Attributes:
        losses: the losses whose errors are summed.
        train: whether the segment's parameters gain the flow's gradient.
        onward: the flow of the segment before that receives the error, if any.
        scale: what the error is multiplied by on the way onward; credit weights are such factors.
    """

    losses: frozenset[int]
    train: bool
    onward: int | None
    scale: float


class Entrance(NamedTuple):
    """Where a loss's error enters: the flow of its segment, None if nothing there learns, and its factor."""

    flow: int | None = None
    scale: float = 1.0


class _Step(NamedTuple):
    """One segment of an error's path: does it train there, and with which factor does the error go on."""

    train: bool
    scale: float


def flows_of(
    table: CreditTable, spans: Sequence[range], ends: dict[int, int], learns: list[bool], attached: Iterable[int]
) -> tuple[tuple[tuple[Flow, ...], ...], dict[int, Entrance]]:
    """The flows of each segment, and where each loss's error enters.

    Args:
        table: which loss trains which layers.
        spans: the layers of each segment.
        ends: for each loss, the segment at whose end it sits.
        learns: whether each segment has anything to train.
        attached: losses that train their segment themselves.
    """
    columns = [table.column(span[0]) for span in spans]
    index: list[dict[tuple[_Step, ...], int]] = [{} for _ in spans]
    groups: list[list[tuple[tuple[_Step, ...], set[int]]]] = [[] for _ in spans]
    entrances: dict[int, Entrance] = dict.fromkeys(attached, Entrance())
    for k, end in ends.items():
        if k in entrances:
            continue
        path, scale = _path(k, end, columns, learns)
        for offset in range(len(path)):
            s, rest = end - offset, path[offset:]
            if rest not in index[s]:
                index[s][rest] = len(groups[s])
                groups[s].append((rest, set()))
            groups[s][index[s][rest]][1].add(k)
        entrances[k] = Entrance(index[end][path] if path else None, scale)
    flows: list[tuple[Flow, ...]] = []
    for s, own in enumerate(groups):
        flows.append(tuple(_flow(rest, losses, index[s - 1] if s else {}) for rest, losses in own))
    return tuple(flows), entrances


def _flow(rest: tuple[_Step, ...], losses: set[int], before: dict[tuple[_Step, ...], int]) -> Flow:
    onward = before[rest[1:]] if len(rest) > 1 else None
    return Flow(frozenset(losses), rest[0].train, onward, rest[0].scale)


def _path(
    k: int, end: int, columns: list[tuple[Entry | None, ...]], learns: list[bool]
) -> tuple[tuple[_Step, ...], float]:
    """The path of loss k's error from its segment on, as far as it trains something, and the factor it enters with."""
    entries: list[Entry] = []
    for s in range(end, -1, -1):
        entry = columns[s][k]
        if entry is None:
            break
        entries.append(Entry(entry.train and learns[s], entry.weight))
    while entries and not entries[-1].train:
        entries.pop()
    # An error carries the weight of the next segment that it trains, so that weights cost nothing but an edge's factor.
    carried: list[float] = []
    for entry in reversed(entries):
        carried.append(entry.weight if entry.train else carried[-1])
    carried.reverse()
    scales = [after / here for here, after in pairwise(carried)] + [1.0]
    path = tuple(_Step(entry.train, scale) for entry, scale in zip(entries, scales[: len(entries)], strict=True))
    return path, carried[0] if carried else 1.0
