"""Wiring a rule: its credit table applied to a network, before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from localprop.arguments import check_arguments
from localprop.data.dataset import Normalization
from localprop.errors import BadInput, check
from localprop.network.layers import Layers
from localprop.network.partition import Partition
from localprop.rule.builders import make_credit_table
from localprop.rule.rule import Rule
from localprop.rule.table import CreditTable
from localprop.schedule.flows import Flow, FlowEntry, find_flows
from localprop.schedule.heads import build_encoders, build_heads
from localprop.schedule.segments import (
    build_segment,
    find_last_segment,
    find_skips,
    find_spans,
    find_trainable,
    tie_segments,
)
from localprop.schedule.sums import find_weights_once
from localprop.schedule.wiring import Objective, ResolvedCopy, Segment, Tap, Wiring, get_loss
from localprop.tasks.classification import Classification
from localprop.tasks.task import Task

__all__ = ["wire"]


@check_arguments
def wire(
    rule: Rule,
    partition: Partition,
    *,
    task: Task = Classification(),  # noqa: B008 - it is frozen
    frozen: frozenset[str] = frozenset(),
    seed: int = 0,
    normalization: Normalization | None = None,
    weight_gradients: str = "once",
    atomic: bool = False,
) -> Wiring:
    """Work out segments and flows, and build heads, losses and encoders.

    Args:
        rule: the training rule.
        partition: the network and its cuts.
        task: what the network is trained for; the last module's loss is its, of the model's own
            output.
        frozen: names of parameters that are not trained.
        seed: the seed of the initial weights of heads and encoders. Each depends on the seed and
            its own position only, and the caller's random state is untouched.
        normalization: mean and standard deviation that turned pixels into inputs, for losses that
            need the pixels.
        weight_gradients: "once" (where it pays, of the summed gradients of several flows) or "each"
            (by each flow).
        atomic: let optimizers step after all else.

    Raises:
        BadInput: the credit table, a head or an encoder does not fit the network.
    """
    table = make_credit_table(rule, partition)
    sources = tuple(rule.context.sources(module) for module in range(len(partition.modules)))
    encoders = build_encoders(rule, partition, sources, seed)
    spans = find_spans(partition, table)
    segments = tie_segments([build_segment(partition, span, frozen) for span in spans], table)
    heads = build_heads(rule, partition, table, task, seed, normalization)
    # Only a loss that is built says whether it is of second order, so heads come before flows.
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
    skips = find_skips(partition.layers, spans, isolated=partition.isolate_skips)
    return Wiring(
        table,
        partition.layers,
        segments,
        skips,
        flows,
        objectives,
        sources,
        heads,
        encoders,
        task,
        find_weights_once(flows, skips) if weight_gradients == "once" else frozenset(),
        atomic,
    )


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
        # The first is None and not 0: most ends have one loss, and its actions print as 3L and 3H.
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
    # The path has no gaps (the table is checked), so each hop is one segment towards the input.
    s = end
    while entry.flow is not None:
        entries[s] = entry
        flow = flows[s][entry.flow]
        entry = FlowEntry(flow.onward, entry.scale * flow.scale)
        s -= 1
    return entries


def _resolve_copies(head: nn.Module, segments: tuple[Segment, ...]) -> Iterator[ResolvedCopy]:
    """Find the parameter copies in a head, and the segment that steps the source of each."""
    for prefix, module in head.named_modules():
        for copy in getattr(module, "parameter_copies", ()):
            stepped_by = (s for s, each in enumerate(segments) if copy.source in each.parameters)
            yield ResolvedCopy(copy, f"{prefix}.{copy.target}", next(stepped_by, None))


def _find_second_order_problems(
    table: CreditTable, segments: tuple[Segment, ...], second_order: Iterable[int]
) -> Iterator[str]:
    """A second-order loss must train the whole of its module alone, and nothing else."""
    for k in second_order:
        module = table.module_of_loss[k]
        in_module = [segment for segment in segments if segment.module == module]
        layers = in_module[0].layers
        # With one segment all layers have one column, so the first layer speaks for the module.
        losses_here = sum(entry is not None for entry in table.column(layers[0]))
        is_alone = losses_here <= 1 and table.module_of_loss.count(module) == 1
        if len(in_module) > 1 or not is_alone or table.reach(k) != len(layers):
            yield (
                f"Loss {k} differentiates through its module, so it must train just that: give it "
                f"credit=LocalCredit(), not\n{table}"
            )
