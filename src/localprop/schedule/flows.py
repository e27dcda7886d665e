"""Flows: gradients of several losses that share one backward.

Two losses that train the same segments from some point on need one backward there, not two: their
gradients are summed. Constant credit weights do not separate them, since a weight becomes a factor
on the edge between two segments.

::

    loss0  T|.|.      segment 2    flow 0: loss 2                1 backward
    loss1  T|T|.      segment 1    flow 0: losses 1 and 2        1 backward
    loss2  T|T|T      segment 0    flow 0: losses 0, 1 and 2     1 backward
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from localprop.rule.table import CreditTable, Entry


class Flow(NamedTuple):
    """Gradients that are summed at a segment's end, because their remaining paths are equal.

    Paths are equal if they train the same segments, with weights that differ by a constant factor.

    Attributes:
        losses: the losses whose gradients are summed.
        train: whether the segment's parameters accumulate the flow's gradient.
        onward: the flow of the segment before that receives the gradient, or None if it ends here.
        scale: the factor on the gradient on its way to that segment; credit weights become such
            factors.
    """

    losses: frozenset[int]
    train: bool
    onward: int | None
    scale: float


class FlowEntry(NamedTuple):
    """The flow that the gradient of a loss joins at its segment, and the factor it joins with.

    The flow is None if the loss trains no segment by backwards.
    """

    flow: int | None = None
    scale: float = 1.0


class _Hop(NamedTuple):
    """One segment of a gradient's path: whether it trains there, and the factor to the next one."""

    train: bool
    scale: float


_Path = tuple[_Hop, ...]  # from a segment on towards the input
_Group = dict[_Path, set[int]]  # the flows of one segment: their paths, in order, and their losses


def find_flows(
    table: CreditTable,
    spans: Sequence[range],
    ends: Mapping[int, int],
    trainable: Sequence[bool],
    second_order: Iterable[int],
) -> tuple[tuple[tuple[Flow, ...], ...], dict[int, FlowEntry]]:
    """The flows of each segment, and the entry of each loss's gradient.

    Args:
        table: which loss trains which layers.
        spans: the layers of each segment.
        ends: for each loss, the segment at whose end it sits.
        trainable: whether each segment has something to train.
        second_order: the losses that train their segment without a backward of the schedule.
    """
    columns = [table.column(span[0]) for span in spans]
    groups: list[_Group] = [{} for _ in spans]
    entries = dict.fromkeys(second_order, FlowEntry())
    for k, end in ends.items():
        if k in entries:
            continue
        path, scale = _find_path(k, end, columns, trainable)
        for hops in range(len(path)):
            # The rest of a path from a segment on is what decides there: equal rests share a
            # backward.
            groups[end - hops].setdefault(path[hops:], set()).add(k)
        entries[k] = FlowEntry(_find_number(path, groups[end]) if path else None, scale)
    flows = tuple(_make_flows(group, before) for before, group in pairwise([{}, *groups]))
    return flows, entries


def _make_flows(group: _Group, before: _Group) -> tuple[Flow, ...]:
    """The flows of a segment, given the paths through it and those through the segment before."""
    flows = []
    for path, losses in group.items():
        onward = _find_number(path[1:], before) if len(path) > 1 else None
        flows.append(Flow(frozenset(losses), path[0].train, onward, path[0].scale))
    return tuple(flows)


def _find_number(path: _Path, group: _Group) -> int:
    return list(group).index(path)


def _find_path(
    k: int,
    end: int,
    columns: Sequence[tuple[Entry | None, ...]],
    trainable: Sequence[bool],
) -> tuple[_Path, float]:
    """The path of loss k's gradient from segment `end`, and the factor that it starts with."""
    entries: list[Entry] = []
    for s in range(end, -1, -1):
        entry = columns[s][k]
        if entry is None:
            break
        entries.append(Entry(entry.train and trainable[s], entry.weight))
    # The backward stops at the last segment that it trains: frozen layers in front of it cost
    # nothing.
    while entries and not entries[-1].train:
        entries.pop()
    if not entries:
        return (), 1.0
    weights = _find_weights_in_transit(entries)
    scales = [*(after / before for before, after in pairwise(weights)), 1.0]
    hops = (_Hop(entry.train, scale) for entry, scale in zip(entries, scales, strict=True))
    return tuple(hops), weights[0]


def _find_weights_in_transit(entries: Sequence[Entry]) -> list[float]:
    """The credit weight that a gradient carries into each segment of its path.

    A gradient carries the weight of the next segment that it trains. Segments that it only passes
    have no weight, so they hand on the one that comes after them. Ratios of neighbours become the
    factors on the edges, and weights cost no backward of their own.

    ::

        segment    3        2      1        0            the last segment always trains
        entry      T(1)     p      p        T(0.5)
        carried    1        0.5    0.5      0.5
        factor        0.5      1        1
    """
    carried: list[float] = []
    for entry in reversed(entries):
        carried.append(entry.weight if entry.train else carried[-1])
    return carried[::-1]
