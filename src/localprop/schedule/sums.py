"""Sums of gradients: where the weights' gradients of several flows are made once, and which of them
are summed apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from localprop.schedule.flows import Flow
from localprop.schedule.wiring import Skips, Wiring

# Where several flows train a segment: of their sum, or by each of them.
WEIGHT_GRADIENTS = ("once", "each")


def find_weights_once(flows: Iterable[Sequence[Flow]], skips: Iterable[Skips]) -> frozenset[int]:
    """The segments whose weights' gradients are made once for all flows, by an action `W`.

    A backward is linear in the gradient that it begins with. So the gradients of weights that
    several flows make one after the other are those of their sum::

        each     1B.0: input and weights     1B.1: weights
        once     1B.0: input                 1W:   weights, of the sum of both gradients

    A pass for weights is saved for each flow but one. Where all flows go onward, W is a pass more,
    which pays from three flows on. W also needs the gradients at all that lives at the segment's
    end: where more than the features does, each flow trains the weights itself.

    Args:
        flows: through each segment.
        skips: what lives at the end of each segment besides its features.
    """
    found = set[int]()
    for segment, (through, at_end) in enumerate(zip(flows, skips, strict=True)):
        training = [flow for flow in through if flow.train]
        passes_more = all(flow.onward is not None for flow in training)
        if len(training) - 1 > passes_more and not at_end:
            found.add(segment)
    return frozenset(found)


def find_flows_set_apart(wiring: Wiring, parts: int) -> dict[int, list[tuple[int, int]]]:
    """By the segment of a step: the flows (segment, flow) whose gradients of parameters are summed
    apart and added before it, in this order.

    Autograd adds to `.grad` in the order in which backwards run, which on several ranks depends on
    messages. So of the flows that train what a step updates, through its segment and through those
    that use a tied parameter, each but the first has a sum of its own. These are added in the order
    of segments and flows; then the result is the same, to the bit, on any number of ranks::

        flow 0   micro-batches 0 1 2 ──► .grad   ┐
        flow 1   micro-batches 0 1 2 ──► apart   ┴──► their sum, before the segment's step

    Where weights' gradients are made once, all flows of a segment count as one, number 0.

    Args:
        wiring: flows of all segments.
        parts: micro-batches in all replicas. One sum of two gradients is the same in either order.
    """
    training: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for segment, flows in enumerate(wiring.flows):
        for number, flow in enumerate(flows):
            trains = number == 0 if segment in wiring.weights_once else flow.train
            for step in wiring.steps_of(segment) if trains else ():
                training[step].append((segment, number))
    return {step: found[1:] for step, found in training.items() if len(found) * parts > 2}
