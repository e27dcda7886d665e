"""Values: the variables of a schedule, by name.

A value is named after where it stands::

      segment 1              cut               segment 2
    ... F1 ────────► h1 ─────────────► F2 ──────────────► h2 ...      the network's forward
        │ graph1     │ f1  for losses  │ leaf2, graph2
        │ t:name     │ c1  for contexts│
        ▼            ▼                 ▼
        B1 ◄── g1<1L + g1<2B ◄──────── B2 ◄── g2<2L ...               gradients, one per writer

===========  ============================================  ================  ==================
value        what it is                                    written by        read by
===========  ============================================  ================  ==================
x, y         the network's input and the targets           the step          F, L
h2           the output of segment 2, detached, dense; on  F, RECV_F         next F, SEND_F
             ranks a list of all that crosses its end
f2           what losses at the end of segment 2 see       F                 L
c2           the input of module 2, for later contexts     F, RECV_C         F, SEND_C
i2           the input of module 2, for losses             F                 L
graph2       the graph of segment 2, at its injected root  F                 B, W
leaf2        the input of segment 2, a leaf of that graph  F                 B
skips2       what else lives at its beginning (`Skips`)    F                 B
t:name       an inner output that a loss looks at          F                 L
e:name       its place in the graph                        F                 B, W
d:name.1<3L  its gradient from loss 3, for flow 1          L                 B, W
g2.1<3B      a part of h2's gradient, flow 1, from 3B      L, B, RECV_B      B, W, SEND_B
gw2.1        h2's gradient, flow 1, which has gone on      B                 W
gs2.1<3B     the same of what else lives at that end       B, RECV_B         B, SEND_B
k3           what a second-order loss hands on             L                 next module's L
G2, G2.1     gradients of parameters: .grad; of flow 1     B, W, L           REDUCE_S, S
G2.1<0B      the same of tied ones, from flow 1 of 0       B                 REDUCE_S, S
G2.0<0W      the same from all flows of 0 at once          W                 REDUCE_S, S
H3           the .grad of the parameters of loss 3         L                 REDUCE_H, H
loss3        the loss, summed over micro-batches           L                 the step
===========  ============================================  ================  ==================

A value of another micro-batch than the first has it behind a slash: `h2/1`. Several values may
share a storage: h, f, leaf and often c, i and t are views of one output. Bytes belong to storages;
values say who holds them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from localprop.schedule.schedule import Action, Op
from localprop.schedule.wiring import Objective, Wiring


class Kind(StrEnum):
    """The kinds of values; each prints as its name begins."""

    INPUT = "x"
    TARGETS = "y"
    OUTPUT = "h"
    FEATURES = "f"
    CONTEXT = "c"
    MODULE_INPUT = "i"
    GRAPH = "graph"
    LEAF = "leaf"
    SKIPS = "skips"
    TAP = "t"
    TAP_EDGE = "e"
    TAP_GRADIENT = "d"
    GRADIENT = "g"
    KEPT_GRADIENT = "gw"
    SKIP_GRADIENTS = "gs"
    CARRIED = "k"
    WEIGHT_GRADIENT = "G"
    HEAD_GRADIENT = "H"
    LOSS = "loss"


# The step itself holds these from its beginning to its end; nobody takes them.
ROOTS = (Kind.INPUT, Kind.TARGETS)
# Sums that outlive their readers: `.grad` of parameters, and what the step returns.
ACCUMULATORS = (Kind.WEIGHT_GRADIENT, Kind.HEAD_GRADIENT, Kind.LOSS)


class Value(NamedTuple):
    """A value of a step, by what it is and where it stands.

    Attributes:
        kind: what it is.
        at: the segment, module or loss; of an inner output its name.
        flow: of a gradient, the flow, where the segment has several.
        maker: of a gradient, the action that made it, without its micro-batch.
        microbatch: the micro-batch; 0 for sums over all of them.
    """

    kind: Kind
    at: int | str = ""
    flow: int | None = None
    maker: str = ""
    microbatch: int = 0

    def __str__(self) -> str:
        at = f":{self.at}" if isinstance(self.at, str) and self.at else str(self.at)
        flow = "" if self.flow is None else f".{self.flow}"
        maker = f"<{self.maker}" if self.maker else ""
        return f"{self.kind}{at}{flow}{maker}" + (f"/{self.microbatch}" if self.microbatch else "")


def name_gradient(wiring: Wiring, contributor: Action) -> Value:
    """The part of a gradient that a loss or a backward makes: at the end of its segment, or of the
    one before.
    """
    segment, number, microbatch = contributor.segment, contributor.flow, contributor.microbatch
    # A reader names its parts by plain actions (`find_contributors`), so a deferred maker must
    # give them the same names.
    maker = str(contributor._replace(microbatch=0, deferred=False))
    if contributor.op is Op.L:
        objective = wiring.objective_at(segment, number)
        assert objective.flow is not None
        flow = wiring.flow_number(segment, objective.flow)
        return Value(Kind.GRADIENT, segment, flow, maker, microbatch)
    # A backward makes the gradient at its segment's input, which is the end of the one before.
    onward = wiring.flows[segment][number or 0].onward
    assert onward is not None
    flow = wiring.flow_number(segment - 1, onward)
    return Value(Kind.GRADIENT, segment - 1, flow, maker, microbatch)


def name_skip_gradients(wiring: Wiring, backward: Action) -> Value:
    """What a backward makes of the gradients of all that lives at the end of the segment before,
    but for the features.
    """
    return name_gradient(wiring, backward)._replace(kind=Kind.SKIP_GRADIENTS)


def name_kept_gradient(backward: Action) -> Value:
    """The gradient that a backward began with, kept for the gradients of the weights."""
    return Value(
        Kind.KEPT_GRADIENT, backward.segment, backward.flow, microbatch=backward.microbatch
    )


def name_context(module: int, microbatch: int) -> Value:
    """What a context of a module's input reads: the network's own input is that of module 0."""
    if module == 0:
        return Value(Kind.INPUT, microbatch=microbatch)
    return Value(Kind.CONTEXT, module, microbatch=microbatch)


def name_tap_gradient(wiring: Wiring, name: str, objective: Objective, microbatch: int) -> Value:
    """The gradient that a loss leaves at an inner output."""
    tap = next(tap for tap in objective.taps if tap.name == name)
    assert tap.flow is not None
    flow = wiring.flow_number(tap.segment, tap.flow)
    return Value(Kind.TAP_GRADIENT, name, flow, str(Action(Op.L, *objective.key)), microbatch)


def name_grad(step: int) -> Value:
    """`.grad` of the parameters that the step of a segment updates."""
    return Value(Kind.WEIGHT_GRADIENT, step)
