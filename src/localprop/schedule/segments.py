"""Segments: a network's layers, cut wherever the credit of a layer differs from the one before.

::

    layers      0     1     2  |  3     4     5
    loss0       T     T     T  |  .     .     .
    loss1       .     .     T  |  T     T     T
    segments    └─ 0 ─┘     1     └──── 2 ────┘     a tail at the end of module 0 is a segment
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from torch import nn

from localprop.network.layers import HandedOn, Layers
from localprop.network.partition import Partition
from localprop.rule.table import CreditTable
from localprop.schedule.wiring import Segment, Skips


def find_spans(partition: Partition, table: CreditTable) -> list[range]:
    """Cut the layers wherever the module or the column of the credit table changes, and after each
    layer that hands on a tensor past the next cut.
    """
    layers = partition.layers
    starts, following = [len(layers)], len(layers) - 1  # the last layer before the next cut
    for before in reversed(range(len(layers) - 1)):
        layer = before + 1
        same_module = partition.module_of(layer) == partition.module_of(before)
        # Equal columns do not join modules: losses, contexts and ranks all begin and end where a
        # module does.
        is_cut = not same_module or table.column(layer) != table.column(before)
        if is_cut or any(each.until > following for each in layers.handed_on[before]):
            starts.append(layer)
            following = before
    return [range(start, end) for start, end in pairwise([0, *reversed(starts)])]


def build_segment(partition: Partition, span: range, frozen: frozenset[str]) -> Segment:
    """The segment of a span of layers, with all parameters that it trains.

    Args:
        partition: layers and modules.
        span: the layers of the segment.
        frozen: names of parameters that are not trained.
    """
    # A parameter that two layers of the segment share is listed once.
    names = dict.fromkeys(
        name for layer in span for name in partition.layers.parameters[layer] if name not in frozen
    )
    module = partition.module_of(span[0])
    starts_module = span[0] == partition.modules[module].start
    return Segment(span, tuple(names), module, starts_module)


def find_skips(layers: Layers, spans: list[range], *, isolated: bool) -> tuple[Skips, ...]:
    """What lives at the end of each segment besides its features.

    Args:
        layers: know how long each tensor is read.
        spans: the layers of each segment.
        isolated: whether no gradient goes around a cut.
    """
    skips, live = list[Skips](), list[HandedOn]()
    for span in spans[:-1]:
        end = span[-1]
        kept = tuple(i for i, each in enumerate(live) if each.until > end and not isolated)
        features, *made = layers.handed_on[end]
        skips.append(Skips(tuple(made), kept))
        live = [features, *made, *(live[i] for i in kept)]
    return (*skips, Skips())


def tie_segments(segments: list[Segment], table: CreditTable) -> tuple[Segment, ...]:
    """Leave each parameter that several segments train, a tied one, to the step of one of them.

    The step comes after the last backward through any of them. Other parameters should not wait
    for it, too, so it is that of the segment which this backward runs through: of those that the
    latest loss reaches, the first::

        greedy      loss0  T|.|.        end_to_end      loss0  .|.|.
                    loss1  .|T|.                        loss1  .|.|.
                    loss2  .|.|T                        loss2  T|T|T
        uses of w          w   w                               w   w
        step of w              S                               S
    """
    users: dict[str, list[int]] = defaultdict(list)
    for s, segment in enumerate(segments):
        for name in segment.parameters:
            users[name].append(s)

    def when_done(s: int) -> tuple[int, int]:
        column = table.column(segments[s].layers[0])
        return max(k for k, entry in enumerate(column) if entry), -s

    owners = {name: max(using, key=when_done) for name, using in users.items()}
    return tuple(
        segment._replace(
            parameters=tuple(name for name in segment.parameters if owners[name] == s),
            tied=tuple((name, owners[name]) for name in segment.parameters if owners[name] != s),
        )
        for s, segment in enumerate(segments)
    )


def find_last_segment(segments: tuple[Segment, ...], module: int) -> int:
    """The segment at whose end a module ends."""
    return max(s for s, segment in enumerate(segments) if segment.module == module)


def find_trainable(segments: tuple[Segment, ...], encoders: nn.ModuleDict) -> list[bool]:
    """Whether each segment has something to train: unfrozen parameters or encoders at its input."""
    return [
        bool(segment.parameters or segment.tied)
        or (segment.starts_module and str(segment.module) in encoders)
        for segment in segments
    ]
