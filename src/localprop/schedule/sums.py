"""Which gradients of parameters are summed apart."""

from __future__ import annotations

from collections import defaultdict

from localprop.schedule.wiring import Wiring


def find_flows_set_apart(wiring: Wiring, parts: int) -> dict[int, list[tuple[int, int]]]:
    """By the segment of a step: the flows (segment, flow) whose gradients of parameters are summed
    apart and added before it, in this order.

    Autograd adds to `.grad` in the order in which backwards run, which on several ranks depends on
    messages. So of the flows that train what a step updates, through its segment and through those
    that use a tied parameter, each but the first has a sum of its own. These are added in the order
    of segments and flows; then the result is the same, to the bit, on any number of ranks::

        flow 0   micro-batches 0 1 2 ──► .grad   ┐
        flow 1   micro-batches 0 1 2 ──► apart   ┴──► their sum, before the segment's step

    Args:
        wiring: flows of all segments.
        parts: micro-batches in all replicas. One sum of two gradients is the same in either order.
    """
    training: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for segment, flows in enumerate(wiring.flows):
        for number, flow in enumerate(flows):
            for step in wiring.steps_of(segment) if flow.train else ():
                training[step].append((segment, number))
    return {step: found[1:] for step, found in training.items() if len(found) * parts > 2}
