"""Wiring: what a credit table means for a network, worked out before the first step.

::

    credit table            segments              flows of segment 1 (a tail)
    loss0 TTT|...           0: layers 0, 1        flow 0: loss 0, trains, onward to segment 0
    loss1 ..T|TTT           1: layer 2            flow 1: loss 1, trains, ends here
                            2: layers 3, 4, 5
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from localprop.errors import BadInput, check
from localprop.network.layers import Layers
from localprop.network.partition import Partition
from localprop.rule.auxiliary import Site
from localprop.rule.context import Source
from localprop.rule.credit import CreditTable, Entry
from localprop.rule.losses import LocalLoss, LossBuilder
from localprop.rule.rule import Rule
from localprop.step.random import seed_of


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


class Objective(NamedTuple):
    """A local loss and its auxiliary network at a segment's end.

    Attributes:
        segment: the segment at whose end it sits.
        loss: the number of the loss, that of its module.
        flow: the flow of that segment which the loss's error joins; None if nothing there learns.
        scale: what the error is multiplied by when it joins.
        trained: whether the objective has parameters of its own.
    """

    segment: int
    loss: int
    flow: int | None
    scale: float
    trained: bool


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

    @property
    def task(self) -> LocalLoss:
        """The last module's loss."""
        loss = self.heads[str(len(self.table.sizes) - 1)]["loss"]  # type: ignore[index]
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
    rule: Rule, partition: Partition, *, task: LossBuilder, frozen: frozenset[str] = frozenset(), seed: int = 0
) -> Wiring:
    """Work out segments and flows, and build heads, losses and encoders.

    Args:
        rule: the training rule.
        partition: the network and its cuts.
        task: builds the last module's loss, which looks at the model's own output.
        frozen: names of parameters that are not trained.
        seed: heads and encoders are built from (seed, place) alone; the caller's generators are left alone.

    Raises:
        BadInput: what credit, heads or encoders refuse; a parameter shared by two segments of one module.
    """
    table = rule.credit(partition)
    sources = tuple(rule.context.sources(module) for module in range(len(partition.modules)))
    encoders = _encoders(rule, partition, sources, seed)
    spans = _spans(partition, table)
    segments = tuple(_segment(partition, span, frozen) for span in spans)
    _refuse_shared(segments)
    flows, entrances = _flows(table, segments, _learns(segments, encoders))
    heads = _heads(rule, partition, table, task, seed)
    return Wiring(
        table=table,
        layers=partition.layers,
        segments=segments,
        flows=flows,
        objectives=tuple(
            Objective(
                _end_segment(segments, k), k, *entrances[k], trained=any(True for _ in heads[str(k)].parameters())
            )
            for k in table.losses
        ),
        sources=sources,
        heads=heads,
        encoders=encoders,
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


# --- flows ----------------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """One segment of an error's path: does it train there, and with which factor does the error go on."""

    train: bool
    scale: float


def _flows(
    table: CreditTable, segments: tuple[Segment, ...], learns: list[bool]
) -> tuple[tuple[tuple[Flow, ...], ...], dict[int, tuple[int | None, float]]]:
    """The flows of each segment, and for each loss the flow and scale with which its error enters."""
    columns = [table.column(segment.layers[0]) for segment in segments]
    index: list[dict[tuple[_Step, ...], int]] = [{} for _ in segments]
    groups: list[list[tuple[tuple[_Step, ...], set[int]]]] = [[] for _ in segments]
    entrances: dict[int, tuple[int | None, float]] = {}
    for k in table.losses:
        end = _end_segment(segments, k)
        path, scale = _path(k, end, columns, learns)
        for offset in range(len(path)):
            s, rest = end - offset, path[offset:]
            if rest not in index[s]:
                index[s][rest] = len(groups[s])
                groups[s].append((rest, set()))
            groups[s][index[s][rest]][1].add(k)
        entrances[k] = (index[end][path] if path else None, scale)
    flows = []
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


# --- what is built --------------------------------------------------------------------------------------------------


@contextmanager
def _built_at(*place: object) -> Iterator[None]:
    """What is built inside depends on the place alone; the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*place))
        yield


class _OwnOutput(nn.Identity):
    """The last module's auxiliary network: none, its classifier is part of the primary network."""


def _heads(rule: Rule, partition: Partition, table: CreditTable, task: LossBuilder, seed: int) -> nn.ModuleDict:
    heads = nn.ModuleDict()
    for module in table.losses:
        site = _site(partition, table, module)
        with _built_at(seed, "head", module):
            last = module == len(table.rows) - 1
            aux = _OwnOutput() if last else rule.aux(site)
            loss = (task if last else rule.loss)(site)
        if not isinstance(aux, nn.Module):
            raise BadInput([f"The aux builder returned a {type(aux).__name__}, but must return a torch.nn.Module."])
        if not isinstance(loss, LocalLoss):
            raise BadInput(
                [f"The loss builder returned a {type(loss).__name__}, but must return a localprop.LocalLoss."]
            )
        heads[str(module)] = nn.ModuleDict({"aux": aux, "loss": loss})
    return heads


def _site(partition: Partition, table: CreditTable, module: int) -> Site:
    layer = partition.modules[module][-1]
    layers = partition.layers
    return Site(module, len(table.losses), layer, layers, layers.shapes[layer], layers.output_shape[-1])


def _encoders(rule: Rule, partition: Partition, sources: tuple[tuple[Source, ...], ...], seed: int) -> nn.ModuleDict:
    """An encoder per source; the input of module m has the shape of the output of the layer before."""
    layers = partition.layers
    inputs = [layers.input_shape, *(layers.shapes[module.start - 1] for module in partition.modules[1:])]
    encoders = nn.ModuleDict()
    for module, own in enumerate(sources):
        built = nn.ModuleList()
        for source in own:
            with _built_at(seed, "encoder", module, source.module, source.raw):
                built.append(rule.context.encoder(source, inputs[source.module], inputs[module]))
        if own:
            encoders[str(module)] = built
    return encoders
