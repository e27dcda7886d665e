"""Segments: a network's layers, cut wherever the credit of a layer differs from the one before.

::

    layers      0     1     2  |  3     4     5
    loss0       T     T     T  |  .     .     .
    loss1       .     .     T  |  T     T     T
    segments    └─ 0 ─┘     1     └──── 2 ────┘     a tail at the end of module 0 is a segment
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from localprop.network.partition import Partition
from localprop.rule.table import CreditTable
from localprop.schedule.wiring import Segment


def find_spans(partition: Partition, table: CreditTable) -> list[range]:
    """Cut the layers wherever the module or the column of the credit table changes."""
    layers = range(len(partition.layers))
    starts = [0]
    for before, layer in pairwise(layers):
        same_module = partition.module_of(layer) == partition.module_of(before)
        # Equal columns do not join modules: losses, contexts, recomputes and ranks all begin and
        # end where a module does.
        if not same_module or table.column(layer) != table.column(before):
            starts.append(layer)
    return [range(start, end) for start, end in pairwise([*starts, len(layers)])]


def build_segment(partition: Partition, span: range, frozen: frozenset[str]) -> Segment:
    """The segment of a span of layers; `frozen` names the parameters that are not trained."""
    # A parameter that two layers of the segment share is listed once.
    names = dict.fromkeys(
        name for layer in span for name in partition.layers.parameters[layer] if name not in frozen
    )
    module = partition.module_of(span[0])
    starts_module = span[0] == partition.modules[module].start
    return Segment(span, tuple(names), module, starts_module)


def find_sharing_problems(segments: tuple[Segment, ...]) -> Iterator[str]:
    """One problem for each trained parameter that two segments share.

    Each segment steps its own parameters as soon as their gradients are complete, so a parameter
    must not belong to two of them. `Partition` refuses parameters shared between modules already,
    and what remains is sharing inside a module.
    """
    segment_of: dict[str, int] = {}
    for s, segment in enumerate(segments):
        for name in segment.parameters:
            # Frozen parameters are not listed and may be shared: nothing steps them.
            if segment_of.setdefault(name, s) != s:
                yield (
                    f"Parameter {name!r} is shared by layers of module {segment.module} that "
                    "different losses train: untie it, or use a rule or a cut that gives them the "
                    "same credit."
                )


def find_last_segment(segments: tuple[Segment, ...], module: int) -> int:
    """The segment at whose end a module ends."""
    return max(s for s, segment in enumerate(segments) if segment.module == module)


def find_trainable(segments: tuple[Segment, ...], encoders: nn.ModuleDict) -> list[bool]:
    """Whether each segment has something to train: unfrozen parameters or encoders at its input."""
    return [
        bool(segment.parameters) or (segment.starts_module and str(segment.module) in encoders)
        for segment in segments
    ]
