"""Wiring: what a credit table means for a network, worked out before the first step.

::

    credit table            segments              flows of segment 1 (a tail)
    loss0 TTT|...           0: layers 0, 1        flow 0: loss 0, trains, onward to segment 0
    loss1 ..T|TTT           1: layer 2            flow 1: loss 1, trains, ends here
                            2: layers 3, 4, 5
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from localprop.errors import BadInput, check
from localprop.network.layers import Layers
from localprop.network.partition import Partition
from localprop.rule.auxiliary import Normalised
from localprop.rule.borrow import Borrow
from localprop.rule.context import Source
from localprop.rule.losses import LocalLoss, LossBuilder
from localprop.rule.rule import Rule
from localprop.rule.table import CreditTable
from localprop.step.built import encoders_of, heads_of, loss_of
from localprop.step.flows import Entrance, Flow, flows_of


class Segment(NamedTuple):
    """Neighbouring layers of one module that the same losses train: a stretch of the network's forward between two cuts.

    Attributes:
        layers: the indices of the layers.
        parameters: names of the model's parameters that the segment's step updates; frozen ones are left out.
        module: the local module that the segment is part of.
        inlet: whether it is the module's first one, where context enters.
    """

    layers: range
    parameters: tuple[str, ...]
    module: int
    inlet: bool


class Objective(NamedTuple):
    """A local loss and its auxiliary network at a segment's end.

    Attributes:
        segment: the segment at whose end it sits.
        loss: the number of the loss, its row in the credit table.
        number: which one it is of those at this end; None for the first.
        flow: the flow of that segment which the loss's error joins; None if nothing there learns.
        scale: what the error is multiplied by when it joins.
        trained: whether the objective has parameters of its own.
        attached: whether it differentiates through its segment and trains that itself.
        taps: the inner outputs that it looks at.
        loans: the parameters that it borrows.
    """

    segment: int
    loss: int
    number: int | None
    flow: int | None
    scale: float
    trained: bool
    attached: bool
    taps: tuple[Tap, ...]
    loans: tuple[Loan, ...]

    @property
    def place(self) -> tuple[int, int | None]:
        """The segment and number, which its actions have."""
        return self.segment, self.number

    @property
    def seed_place(self) -> tuple[object, ...]:
        """What its random draws depend on, besides the step."""
        return ("L", self.segment) if self.number is None else ("L", self.segment, self.number)


class Tap(NamedTuple):
    """An inner output that a loss looks at, and where the error goes that it leaves there.

    Attributes:
        name: the module of the network that returns it.
        segment: the segment that the module is part of.
        flow: the flow of that segment which carries the loss; None if nothing there learns from it.
        scale: what the error is multiplied by.
    """

    name: str
    segment: int
    flow: int | None
    scale: float


class Loan(NamedTuple):
    """A parameter of the network that is copied, or averaged, into an objective.

    Attributes:
        borrow: what is borrowed, how often and how.
        target: the name in the objective's head.
        donor: the segment that trains it; None if nothing does.
    """

    borrow: Borrow
    target: str
    donor: int | None


@dataclass(frozen=True)
class Wiring:
    """All that the schedule and the engine need to know of a rule on a network.

    Attributes:
        table: the credit table.
        layers: the network's layers.
        segments: in the order of the forward.
        flows: for each segment, the flows through it.
        objectives: in the order of the forward.
        sources: for each module, its contexts.
        heads: by the number of the loss: an nn.ModuleDict of `aux` and `loss`.
        encoders: by the number of the receiving module: an nn.ModuleList, one per source.
    """

    table: CreditTable
    layers: Layers
    segments: tuple[Segment, ...]
    flows: tuple[tuple[Flow, ...], ...]
    objectives: tuple[Objective, ...]
    sources: tuple[tuple[Source, ...], ...]
    heads: nn.ModuleDict
    encoders: nn.ModuleDict

    def segments_of(self, module: int) -> list[int]:
        """The segments of a module."""
        return [s for s, segment in enumerate(self.segments) if segment.module == module]

    def encoders_at(self, segment: int) -> nn.ModuleList | None:
        """The encoders at a segment's inlet, if there are any."""
        key = str(self.segments[segment].module)
        found = self.encoders[key] if self.segments[segment].inlet and key in self.encoders else None
        assert found is None or isinstance(found, nn.ModuleList)
        return found

    def attached_at(self, segment: int) -> bool:
        """Whether a loss differentiates through a segment and trains it."""
        return any(objective.attached for objective in self.objectives if objective.segment == segment)

    @property
    def task(self) -> LocalLoss:
        """The last module's loss."""
        loss = self.heads[str(len(self.table.rows) - 1)]["loss"]  # type: ignore[index]
        assert isinstance(loss, LocalLoss)
        return loss

    def head(self, objective: Objective) -> nn.ModuleDict:
        """The auxiliary network and the loss of an objective: "aux" and "loss"."""
        head = self.heads[str(objective.loss)]
        assert isinstance(head, nn.ModuleDict)
        return head

    def trained(self, named: Mapping[str, nn.Parameter], segment: int) -> list[nn.Parameter]:
        """What a segment's step updates: parameters of the model, given by name, and of the encoders at its inlet."""
        encoders = self.encoders_at(segment)
        return [named[name] for name in self.segments[segment].parameters] + list(
            encoders.parameters() if encoders else ()
        )

    def layers_in(self, segments: range) -> range:
        """The layers of neighbouring segments."""
        return range(self.segments[segments[0]].layers[0], self.segments[segments[-1]].layers[-1] + 1)

    def used(self, segments: Iterable[int]) -> set[str]:
        """The names of the model's parameters that segments use, frozen ones too."""
        return {name for s in segments for layer in self.segments[s].layers for name in self.layers.parameters[layer]}

    def message_shape(self, segment: int, samples: int, *, output: bool) -> tuple[torch.Size, torch.dtype]:
        """What goes over a segment's end, or over its beginning, for so many samples."""
        layer = self.segments[segment].layers[-1] if output else self.segments[segment].layers[0] - 1
        return self.layers.shape_for(self.layers.shapes[layer], samples), self.layers.dtypes[layer]

    def span_name(self, segment: int) -> str:
        """A segment's layers in words: the first and the last."""
        first, last = (self.layers.names[self.segments[segment].layers[i]] for i in (0, -1))
        return first if first == last else f"{first} .. {last}"

    def end_name(self, segment: int) -> str:
        """The module of the network at whose return a segment ends."""
        return self.layers.names[self.segments[segment].layers[-1]]


def wire(
    rule: Rule,
    partition: Partition,
    *,
    task: LossBuilder,
    frozen: frozenset[str] = frozenset(),
    seed: int = 0,
    normalised: Normalised | None = None,
) -> Wiring:
    """Work out segments and flows, and build heads, losses and encoders.

    Args:
        rule: the training rule.
        partition: the network and its cuts.
        task: builds the last module's loss, which looks at the model's own output.
        frozen: names of parameters that are not trained.
        seed: heads and encoders are built from (seed, place) alone; the caller's generators are left alone.
        normalised: how inputs were made from pixels, for losses that look at those.

    Raises:
        BadInput: what credit, heads or encoders refuse; a parameter shared by two segments of one module.
    """
    table = rule.credit(partition)
    sources = tuple(rule.context.sources(module) for module in range(len(partition.modules)))
    encoders = encoders_of(rule, partition, sources, seed)
    spans = _spans(partition, table)
    segments = tuple(_segment(partition, span, frozen) for span in spans)
    _refuse_shared(segments)
    heads = heads_of(rule, partition, table, task, seed, normalised)
    ends = {k: _end_segment(segments, table.at[k]) for k in table.losses}
    attached = [k for k in table.losses if loss_of(heads, k).attached]
    check(_detached_problems(table, segments, attached))
    flows, entrances = flows_of(table, spans, ends, _learns(segments, encoders), attached)
    objectives = []
    for k, segment in ends.items():
        number = sum(ends[other] == segment for other in ends if other < k)
        objectives.append(
            Objective(
                segment,
                k,
                number or None,
                *entrances[k],
                trained=any(True for _ in heads[str(k)].parameters()),
                attached=k in attached,
                taps=tuple(_taps(loss_of(heads, k).taps, partition.layers, segments, flows, segment, entrances[k])),
                loans=tuple(_loans(heads[str(k)], segments)),
            )
        )
    return Wiring(
        table=table,
        layers=partition.layers,
        segments=segments,
        flows=flows,
        objectives=tuple(objectives),
        sources=sources,
        heads=heads,
        encoders=encoders,
    )


def _taps(
    names: Iterable[str],
    layers: Layers,
    segments: tuple[Segment, ...],
    flows: tuple[tuple[Flow, ...], ...],
    end: int,
    entrance: Entrance,
) -> Iterator[Tap]:
    """Where each inner output is, and where a loss's error goes there: along the loss's own path."""
    on_path, here, s = dict[int, Entrance](), entrance, end
    while here.flow is not None:
        on_path[s], flow = here, flows[s][here.flow]
        here, s = Entrance(flow.onward, here.scale * flow.scale), s - 1
    for name in names:
        layer = layers.layer_of(name)
        segment = next(s for s, own in enumerate(segments) if layer in own.layers)
        if segments[segment].module != segments[end].module:
            raise BadInput(f"A loss may look at outputs inside its own module only, but {name!r} is in another one.")
        yield Tap(name, segment, *on_path.get(segment, Entrance()))


def _loans(head: nn.Module, segments: tuple[Segment, ...]) -> Iterator[Loan]:
    donors = {name: s for s, segment in enumerate(segments) for name in segment.parameters}
    for prefix, part in head.named_modules():
        for borrow in getattr(part, "borrows", ()):
            yield Loan(borrow, f"{prefix}.{borrow.target}", donors.get(borrow.source))


def _detached_problems(table: CreditTable, segments: tuple[Segment, ...], attached: Iterable[int]) -> Iterator[str]:
    """A loss that differentiates through its module must be the one that trains it, and train nothing else."""
    for k in attached:
        module = table.at[k]
        own = [s for s, segment in enumerate(segments) if segment.module == module]
        others = sum(entry is not None for entry in table.column(segments[own[0]].layers[0])) > 1
        if len(own) > 1 or others or table.reach(k) != len(segments[own[0]].layers) or table.at.count(module) > 1:
            yield (
                f"Loss {k} differentiates through its module, so it must train just that: give it credit=Own(), not\n{table}"
            )


def _spans(partition: Partition, table: CreditTable) -> list[range]:
    """Runs of neighbouring layers of one module with equal columns."""
    layers = range(len(partition.layers))
    starts = [0]
    for before, layer in pairwise(layers):
        if table.column(layer) != table.column(before) or partition.module_of(layer) != partition.module_of(before):
            starts.append(layer)
    return [range(a, b) for a, b in pairwise([*starts, len(layers)])]


def _segment(partition: Partition, span: range, frozen: frozenset[str]) -> Segment:
    names = dict.fromkeys(name for layer in span for name in partition.layers.parameters[layer] if name not in frozen)
    module = partition.module_of(span[0])
    return Segment(span, tuple(names), module, inlet=span[0] == partition.modules[module].start)


def _refuse_shared(segments: tuple[Segment, ...]) -> None:
    owner: dict[str, int] = {}
    problems = []
    for s, segment in enumerate(segments):
        for name in segment.parameters:
            if owner.setdefault(name, s) != s:
                problems.append(
                    f"Parameter {name!r} is shared by layers of module {segment.module} that different losses train: "
                    "untie it, or use a rule or a cut that gives them the same credit."
                )
    check(problems)


def _end_segment(segments: tuple[Segment, ...], module: int) -> int:
    return max(s for s, segment in enumerate(segments) if segment.module == module)


def _learns(segments: tuple[Segment, ...], encoders: nn.ModuleDict) -> list[bool]:
    """Whether a segment has anything to train: parameters that are not frozen, or encoders at its inlet."""
    return [bool(s.parameters) or (s.inlet and str(s.module) in encoders) for s in segments]
