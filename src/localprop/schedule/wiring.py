"""Wiring: a credit table applied to a network, worked out before the first step.

::

    credit table            segments              flows of segment 1 (a tail)
    loss0 TTT|...           0: layers 0, 1        flow 0: loss 0, trains, onward to segment 0
    loss1 ..T|TTT           1: layer 2            flow 1: loss 1, trains, ends here
                            2: layers 3, 4, 5
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from localprop.data.dataset import Normalization
from localprop.errors import BadInput, check
from localprop.network.layers import Layers
from localprop.network.partition import Partition
from localprop.rule.context import Source
from localprop.rule.losses import LocalLoss, LossBuilder
from localprop.rule.parameter_copy import ParameterCopy
from localprop.rule.rule import Rule
from localprop.rule.table import CreditTable
from localprop.schedule.flows import Flow, FlowEntry, find_flows
from localprop.schedule.heads import build_encoders, build_heads, get_loss
from localprop.schedule.segments import (
    Segment,
    build_segment,
    find_last_segment,
    find_sharing_problems,
    find_spans,
    find_trainable,
)

__all__ = ["wire"]


class Objective(NamedTuple):
    """A local loss and its auxiliary network at the end of a segment.

    Attributes:
        segment: the segment at whose end the objective sits.
        loss: the number of the loss, which is its row in the credit table.
        number: the position among the objectives at this end, or None for the first one.
        flow: the flow of the segment that the loss's gradient joins, or None if nothing there
            learns.
        scale: the factor on the gradient when it joins the flow.
        trained: whether the objective has parameters of its own.
        second_order: whether the loss differentiates through its segment and trains it by itself.
        taps: the inner outputs that the loss reads.
        copies: the network's parameters that are copied into the objective.
    """

    segment: int
    loss: int
    number: int | None
    flow: int | None
    scale: float
    trained: bool
    second_order: bool
    taps: tuple[Tap, ...]
    copies: tuple[ResolvedCopy, ...]

    @property
    def key(self) -> tuple[int, int | None]:
        """The segment and the flow field of the actions L, H and P of this objective."""
        return self.segment, self.number

    @property
    def seed_key(self) -> tuple[object, ...]:
        """The part of the random seed that identifies the objective within a step."""
        return ("L", self.segment) if self.number is None else ("L", self.segment, self.number)


class Tap(NamedTuple):
    """An inner output that a loss reads, and the flow that takes the loss's gradient there.

    Attributes:
        name: the module of the network that returns the output.
        segment: the segment that this module is part of.
        flow: the flow of that segment which carries the loss, or None if the loss trains nothing
            there.
        scale: the factor on the gradient.
    """

    name: str
    segment: int
    flow: int | None
    scale: float


class ResolvedCopy(NamedTuple):
    """A copy, or a running average, of a parameter of the network inside an objective.

    Attributes:
        borrow: the source, the interval and the decay.
        target: the name of the copy in the objective's head.
        source_segment: the segment that trains the source, or None if no segment does.
    """

    borrow: ParameterCopy
    target: str
    source_segment: int | None


@dataclass(frozen=True)
class Wiring:
    """Everything that the schedule and the engine need to know of a rule on a network.

    Attributes:
        table: the credit table.
        layers: the network's layers.
        segments: in the order of the forward.
        flows: the flows through each segment.
        objectives: in the order of the forward.
        sources: the contexts of each module.
        heads: by the number of the loss, an nn.ModuleDict of `aux` and `loss`.
        encoders: by the number of the receiving module, an nn.ModuleList with one per source.
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

    def flow_number(self, segment: int, flow: int) -> int | None:
        """The flow field of an action: the flow's number, or None if the segment has one flow."""
        return flow if len(self.flows[segment]) > 1 else None

    def encoders_at(self, segment: int) -> nn.ModuleList | None:
        """The encoders whose outputs are added to a segment's input, if there are any."""
        key = str(self.segments[segment].module)
        if not self.segments[segment].starts_module or key not in self.encoders:
            return None
        encoders = self.encoders[key]
        assert isinstance(encoders, nn.ModuleList)
        return encoders

    def has_second_order_loss(self, segment: int) -> bool:
        """Whether a loss differentiates through a segment and trains it."""
        return any(
            objective.second_order for objective in self.objectives if objective.segment == segment
        )

    @property
    def task(self) -> LocalLoss:
        """The last module's loss."""
        return get_loss(self.heads, len(self.table.rows) - 1)

    def head(self, objective: Objective) -> nn.ModuleDict:
        """The auxiliary network and the loss of an objective: "aux" and "loss"."""
        head = self.heads[str(objective.loss)]
        assert isinstance(head, nn.ModuleDict)
        return head

    def trained(self, named: Mapping[str, nn.Parameter], segment: int) -> list[nn.Parameter]:
        """The parameters that a segment's step updates.

        Args:
            named: the model's parameters by name.
            segment: the segment; the encoders at its input belong to it.
        """
        encoders = self.encoders_at(segment)
        return [
            *(named[name] for name in self.segments[segment].parameters),
            *(encoders.parameters() if encoders else ()),
        ]

    def layers_in(self, segments: range) -> range:
        """The layers of consecutive segments."""
        first, last = self.segments[segments[0]], self.segments[segments[-1]]
        return range(first.layers[0], last.layers[-1] + 1)

    def parameters_used_by(self, segments: Iterable[int]) -> set[str]:
        """The names of the model's parameters that segments use, including frozen ones."""
        return {
            name
            for s in segments
            for layer in self.segments[s].layers
            for name in self.layers.parameters[layer]
        }

    def message_shape(
        self, segment: int, samples: int, *, output: bool
    ) -> tuple[torch.Size, torch.dtype]:
        """Shape and dtype of a segment's output, or of its input, for a number of samples."""
        layers = self.segments[segment].layers
        layer = layers[-1] if output else layers[0] - 1
        return self.layers.shape_for(self.layers.shapes[layer], samples), self.layers.dtypes[layer]

    def span_name(self, segment: int) -> str:
        """The names of a segment's first and last layer, as "first .. last"."""
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
    normalization: Normalization | None = None,
) -> Wiring:
    """Work out segments and flows, and build heads, losses and encoders.

    Args:
        rule: the training rule.
        partition: the network and its cuts.
        task: builds the last module's loss, which reads the model's own output.
        frozen: names of parameters that are not trained.
        seed: the seed of the initial weights of heads and encoders. Each depends on the seed and
            its own position only, and the caller's random state is untouched.
        normalization: mean and standard deviation that turned pixels into inputs, for losses that
            need the pixels.

    Raises:
        BadInput: the credit table, a head or an encoder does not fit the network, or two segments
            of one module share a parameter.
    """
    table = rule.credit(partition)
    sources = tuple(rule.context.sources(module) for module in range(len(partition.modules)))
    encoders = build_encoders(rule, partition, sources, seed)
    spans = find_spans(partition, table)
    segments = tuple(build_segment(partition, span, frozen) for span in spans)
    check(find_sharing_problems(segments))
    heads = build_heads(rule, partition, table, task, seed, normalization)
    second_order = [k for k in table.losses if get_loss(heads, k).second_order]
    check(_find_second_order_problems(table, segments, second_order))
    ends = {k: find_last_segment(segments, table.module_of_loss[k]) for k in table.losses}
    trainable = find_trainable(segments, encoders)
    flows, entries = find_flows(table, spans, ends, trainable, second_order)
    network = _WiredNetwork(partition.layers, segments, flows)
    objectives = tuple(
        _build_objective(network, k, ends, entries[k], heads, is_second_order=k in second_order)
        for k in table.losses
    )
    return Wiring(table, partition.layers, segments, flows, objectives, sources, heads, encoders)


# --- objectives -------------------------------------------------------------------------------


class _WiredNetwork(NamedTuple):
    """A network's layers, segments and flows."""

    layers: Layers
    segments: tuple[Segment, ...]
    flows: tuple[tuple[Flow, ...], ...]


def _build_objective(
    network: _WiredNetwork,
    k: int,
    ends: Mapping[int, int],
    entry: FlowEntry,
    heads: nn.ModuleDict,
    *,
    is_second_order: bool,
) -> Objective:
    """The objective of loss k.

    Args:
        network: layers, segments and flows.
        k: the number of the loss.
        ends: for each loss, the segment at whose end it sits.
        entry: where the gradient of loss k enters.
        heads: auxiliary networks and losses.
        is_second_order: whether the loss trains its segment by itself.
    """
    earlier_at_this_end = sum(ends[other] == ends[k] for other in ends if other < k)
    head = heads[str(k)]
    return Objective(
        segment=ends[k],
        loss=k,
        number=earlier_at_this_end or None,
        flow=entry.flow,
        scale=entry.scale,
        trained=any(True for _ in head.parameters()),
        second_order=is_second_order,
        taps=tuple(_resolve_taps(get_loss(heads, k).taps, network, ends[k], entry)),
        copies=tuple(_resolve_copies(head, network.segments)),
    )


def _resolve_taps(
    names: Iterable[str], network: _WiredNetwork, end: int, entry: FlowEntry
) -> Iterator[Tap]:
    """Find the segment of each inner output, and the flow that the loss's gradient joins there."""
    entries = _follow_flows(network.flows, end, entry)
    for name in names:
        layer = network.layers.layer_of(name)
        s = next(s for s, segment in enumerate(network.segments) if layer in segment.layers)
        if network.segments[s].module != network.segments[end].module:
            raise BadInput(
                f"A loss may look at outputs inside its own module only, but {name!r} is in "
                "another one."
            )
        # Off the path the loss trains nothing: it reads the output as a constant.
        yield Tap(name, s, *entries.get(s, FlowEntry()))


def _follow_flows(
    flows: Sequence[Sequence[Flow]], end: int, entry: FlowEntry
) -> dict[int, FlowEntry]:
    """For each segment on a loss's path, its flow and the factor that has accumulated there.

    A gradient that the loss leaves at a tap must have the same factor as the gradient that comes
    from the loss's features, so it takes the product of the factors on the path.
    """
    entries: dict[int, FlowEntry] = {}
    s = end
    while entry.flow is not None:
        entries[s] = entry
        flow = flows[s][entry.flow]
        entry = FlowEntry(flow.onward, entry.scale * flow.scale)
        s -= 1
    return entries


def _resolve_copies(head: nn.Module, segments: tuple[Segment, ...]) -> Iterator[ResolvedCopy]:
    """Find the parameter copies in a head, and the segment that trains the source of each."""
    segment_of = {name: s for s, segment in enumerate(segments) for name in segment.parameters}
    for prefix, module in head.named_modules():
        for copy in getattr(module, "parameter_copies", ()):
            yield ResolvedCopy(copy, f"{prefix}.{copy.target}", segment_of.get(copy.source))


def _find_second_order_problems(
    table: CreditTable, segments: tuple[Segment, ...], second_order: Iterable[int]
) -> Iterator[str]:
    """A second-order loss must train the whole of its module alone, and nothing else."""
    for k in second_order:
        module = table.module_of_loss[k]
        in_module = [segment for segment in segments if segment.module == module]
        layers = in_module[0].layers
        losses_here = sum(entry is not None for entry in table.column(layers[0]))
        is_alone = losses_here <= 1 and table.module_of_loss.count(module) == 1
        if len(in_module) > 1 or not is_alone or table.reach(k) != len(layers):
            yield (
                f"Loss {k} differentiates through its module, so it must train just that: give it "
                f"credit=LocalCredit(), not\n{table}"
            )
