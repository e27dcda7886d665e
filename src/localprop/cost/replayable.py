"""Which steps can be replayed from what each layer costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from localprop.network.recomputed import Recomputed, Stretch
from localprop.schedule.liveness import Liveness
from localprop.schedule.operands import looks_at_module_input
from localprop.schedule.values import Kind
from localprop.schedule.wiring import Wiring


def can_replay(wiring: Wiring, recomputed: Recomputed = Recomputed()) -> bool:  # noqa: B008
    """Whether figures of single layers say all of a step.

    They know nothing of what goes around layers, of contexts, and of losses that look at inner
    outputs or their module's input, differentiate through their module, or copy its parameters.
    """
    layers = wiring.layers
    plain = all(
        not (o.taps or o.second_order or o.copies or looks_at_module_input(wiring, o))
        and o.number is None
        for o in wiring.objectives
    )
    trains = all(flow.train for flows in wiring.flows for flow in flows)
    return (
        plain
        # Layers without a backward of their own are not measured.
        and not any(used and {*used} <= {*layers.frozen} for used in layers.parameters)
        and not any(layers.goes_around(layer) for layer in range(len(layers) - 1))
        and not len(wiring.encoders)
        and not wiring.tied
        and not any(len(each.layers) > 1 for each in _list_ending(wiring, recomputed))
        and (trains or not recomputed.layers)
        # After the first of two flows, calls that ran again hold their outputs a second time.
        and (not recomputed.layers or not _share_long_segments(wiring))
        # Between two flows, a layer that runs again holds its output as its neighbour does.
        and (
            len(recomputed.layers) in (0, len(layers))
            or not any(recomputed.layers & set(shared) for shared in _list_shared(wiring))
        )
    )


def have_heads_of(wiring: Wiring, measured: Wiring) -> bool:
    """Whether losses have the heads that were measured, where each layer is a module.

    They do not if a head depends on the beginning or the number of its module.
    """
    at_layer = {measured.segments[o.segment].layers[-1]: o for o in measured.objectives}
    return all(
        repr(wiring.head(own))
        == repr(measured.head(at_layer[wiring.segments[own.segment].layers[-1]]))
        for own in wiring.objectives[:-1]
    )


def _list_ending(wiring: Wiring, recomputed: Recomputed) -> Iterator[Stretch]:
    """The stretches at whose end a loss sits: what they hold meets what Python's frames hold."""
    spans = [*wiring.list_spans()]
    ends = {span[-1] for span, has_loss in spans if has_loss}
    return (each for each in recomputed.clip(spans) if each.layers[-1] in ends)


def _share_long_segments(wiring: Wiring) -> bool:
    """Whether several flows go through a segment of several layers."""
    return any(len(layers) > 1 for layers in _list_shared(wiring))


def _list_shared(wiring: Wiring) -> Iterator[range]:
    """The layers of segments through which several flows go."""
    pairs = zip(wiring.segments, wiring.flows, strict=True)
    return (segment.layers for segment, flows in pairs if len(flows) > 1)


def find_dropped_outputs(wiring: Wiring, stretches: Sequence[Stretch]) -> Iterator[int]:
    """The last layers of stretches that drop their outputs, too.

    That happens where the next layer keeps its input itself, and a later stretch does not. Of a
    single layer each call is a stretch of its own, and the last of several most often is stored.
    """
    starts = [each.layers[0] for each in stretches]
    for span, _ in wiring.list_spans():
        for each in stretches:
            end = each.layers[-1] + 1
            is_one = len(each.layers) > 1 or len(wiring.layers.calls[end - 1]) == 1
            is_inside = end - 1 in span and end in span and end not in starts
            if is_one and is_inside and any(end < i < span.stop for i in starts):
                yield end - 1


def find_leaves(liveness: Liveness) -> Iterator[int]:
    """The layers whose outputs are leaves, at which the graph of the next segment begins."""
    for action in liveness.schedule:
        for value in liveness.operands[action].writes:
            if value.kind is Kind.LEAF and value.at:
                yield liveness.wiring.segments[int(value.at)].layers[0] - 1
