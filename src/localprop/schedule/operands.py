"""Operands: what each action of a schedule reads and writes.

A schedule is a program, and these are its variables. A value is named after where it stands::

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

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from localprop.schedule.schedule import (
    Action,
    Op,
    find_contributors,
    find_weight_contributors,
)
from localprop.schedule.sums import find_flows_set_apart
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


class Operands(NamedTuple):
    """What an action reads, in a fixed order, and what it writes.

    Example:
        >>> str(Operands((Value(Kind.OUTPUT, 0),), (Value(Kind.GRAPH, 1), Value(Kind.FEATURES, 1))))
        'h0 -> graph1 f1'
    """

    reads: tuple[Value, ...] = ()
    writes: tuple[Value, ...] = ()

    def __str__(self) -> str:
        return f"{' '.join(map(str, self.reads))} -> {' '.join(map(str, self.writes))}".strip()


def find_operands(
    wiring: Wiring, schedule: Iterable[Action], replicas: int = 1
) -> dict[Action, Operands]:
    """The operands of each action of a rank's schedule.

    A value that no action reads is not written, but for the sums that outlive the step.

    Args:
        wiring: segments, flows and objectives.
        schedule: of one process, or of one rank.
        replicas: of the pipeline; gradients of more than two flows and micro-batches are set apart.
    """
    actions = list(schedule)
    rules = _OperandRules(wiring, actions, replicas)
    reads = {action: tuple(dict.fromkeys(rules.reads(action))) for action in actions}
    # The rules below list all that an action could write. So where no backward reads a graph, no
    # forward builds one.
    wanted = {value for values in reads.values() for value in values}
    return {
        action: Operands(
            reads[action],
            tuple(
                value
                for value in dict.fromkeys(rules.writes(action))
                if value in wanted or value.kind in ACCUMULATORS
            ),
        )
        for action in actions
    }


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


def _name_kept_gradient(backward: Action) -> Value:
    """The gradient that a backward began with, kept for the gradients of the weights."""
    return Value(
        Kind.KEPT_GRADIENT, backward.segment, backward.flow, microbatch=backward.microbatch
    )


class _OperandRules:
    """Facts of a wiring and a rank's schedule, indexed once, and what follows from them for each
    action.
    """

    def __init__(self, wiring: Wiring, actions: list[Action], replicas: int) -> None:
        self.wiring = wiring
        self.objectives: dict[int, list[Objective]] = defaultdict(list)
        for objective in wiring.objectives:
            self.objectives[objective.segment].append(objective)
        self.taps: dict[int, list[str]] = defaultdict(list)
        self.tap_gradients: dict[tuple[int, int], list[tuple[str, Objective]]] = defaultdict(list)
        for objective in wiring.objectives:
            for tap in objective.taps:
                self.taps[tap.segment].append(tap.name)
                if tap.flow is not None:
                    self.tap_gradients[tap.segment, tap.flow].append((tap.name, objective))
        microbatches = 1 + max((action.microbatch for action in actions), default=0)
        # Replicas count, too: their sums are parts of one gradient.
        self.apart = find_flows_set_apart(wiring, microbatches * replicas)
        self._reads: dict[Op, Callable[[Action], Iterator[Value]]] = {
            Op.F: self._forward_reads,
            Op.L: self._loss_reads,
            Op.B: self._backward_reads,
            Op.W: self._weights_reads,
            Op.S: self._step_reads,
            Op.REDUCE_S: self._step_reads,
            Op.H: self._head_step_reads,
            Op.REDUCE_H: self._head_step_reads,
        }
        self._writes: dict[Op, Callable[[Action], Iterator[Value]]] = {
            Op.F: self._forward_writes,
            Op.L: self._loss_writes,
            Op.B: self._backward_writes,
            Op.W: self._weights_writes,
        }

    def reads(self, action: Action) -> Iterable[Value]:
        if action.op in (Op.SEND_F, Op.SEND_B, Op.SEND_C):
            return self._moved(action)
        return self._reads[action.op](action) if action.op in self._reads else ()

    def writes(self, action: Action) -> Iterable[Value]:
        if action.op in (Op.RECV_F, Op.RECV_B, Op.RECV_C):
            return self._moved(action)
        return self._writes[action.op](action) if action.op in self._writes else ()

    # --- messages move values -------------------------------------------------------------------

    def _moved(self, action: Action) -> Iterator[Value]:
        """What a message moves, which has one name on both sides."""
        segment, microbatch = action.segment, action.microbatch
        if action.op in (Op.SEND_F, Op.RECV_F):
            yield Value(Kind.OUTPUT, segment, microbatch=microbatch)
        elif action.op in (Op.SEND_C, Op.RECV_C):
            yield Value(Kind.CONTEXT, self.wiring.segments[segment].module, microbatch=microbatch)
        else:  # they bear the segment and the flow of the backward that makes the gradient
            backward = Action(Op.B, segment, action.flow, microbatch)
            yield name_gradient(self.wiring, backward)
            if self.skips_before(segment):
                yield name_skip_gradients(self.wiring, backward)

    # --- F --------------------------------------------------------------------------------------

    def _forward_reads(self, action: Action) -> Iterator[Value]:
        segment, microbatch = action.segment, action.microbatch
        if segment:
            yield Value(Kind.OUTPUT, segment - 1, microbatch=microbatch)
        else:
            yield Value(Kind.INPUT, microbatch=microbatch)
        # Contexts enter where a module begins, and not at each of its segments.
        if self.wiring.segments[segment].starts_module:
            for source in self.wiring.sources[self.wiring.segments[segment].module]:
                yield name_context(source.module, microbatch)

    def _forward_writes(self, action: Action) -> Iterator[Value]:
        segment, microbatch = action.segment, action.microbatch
        module = self.wiring.segments[segment].module
        yield Value(Kind.OUTPUT, segment, microbatch=microbatch)
        yield Value(Kind.FEATURES, segment, microbatch=microbatch)
        if self.wiring.segments[segment].starts_module:
            yield Value(Kind.CONTEXT, module, microbatch=microbatch)
            yield Value(Kind.MODULE_INPUT, module, microbatch=microbatch)
        yield Value(Kind.GRAPH, segment, microbatch=microbatch)
        yield Value(Kind.LEAF, segment, microbatch=microbatch)
        if self.skips_before(segment):
            yield Value(Kind.SKIPS, segment, microbatch=microbatch)
        for name in self.taps[segment]:
            yield Value(Kind.TAP, name, microbatch=microbatch)
            yield Value(Kind.TAP_EDGE, name, microbatch=microbatch)

    # --- L --------------------------------------------------------------------------------------

    def _loss_reads(self, action: Action) -> Iterator[Value]:
        segment, microbatch = action.segment, action.microbatch
        objective = self.wiring.objective_at(segment, action.flow)
        module = self.wiring.segments[segment].module
        yield Value(Kind.FEATURES, segment, microbatch=microbatch)
        yield Value(Kind.INPUT, microbatch=microbatch)
        yield Value(Kind.TARGETS, microbatch=microbatch)
        for tap in objective.taps:
            yield Value(Kind.TAP, tap.name, microbatch=microbatch)
        if looks_at_module_input(self.wiring, objective):
            yield Value(Kind.MODULE_INPUT, module, microbatch=microbatch)
        # Second-order losses form a chain in the order of the forward; each reads what the last
        # left.
        before = self._second_order_loss_before(objective)
        if before is not None:
            yield Value(Kind.CARRIED, before.loss, microbatch=microbatch)

    def _loss_writes(self, action: Action) -> Iterator[Value]:
        segment, microbatch = action.segment, action.microbatch
        objective = self.wiring.objective_at(segment, action.flow)
        yield Value(Kind.LOSS, objective.loss)
        if objective.trained:
            yield Value(Kind.HEAD_GRADIENT, objective.loss)
        if objective.flow is not None:
            yield name_gradient(self.wiring, action)
        for tap in objective.taps:
            if tap.flow is not None:
                yield name_tap_gradient(self.wiring, tap.name, objective, microbatch)
        if objective.second_order:
            yield Value(Kind.CARRIED, objective.loss, microbatch=microbatch)
            # Such a loss trains its segment itself: its L adds to `.grad` what otherwise a B adds.
            for step in self.wiring.steps_of(segment):
                yield _name_grad(step)

    def _second_order_loss_before(self, objective: Objective) -> Objective | None:
        if not objective.second_order:
            return None
        chain = [each for each in self.wiring.objectives if each.second_order]
        place = chain.index(objective)
        return chain[place - 1] if place else None

    # --- B, W, S, H -----------------------------------------------------------------------------

    def _backward_reads(self, action: Action) -> Iterator[Value]:
        segment, microbatch, number = action.segment, action.microbatch, action.flow or 0
        yield Value(Kind.GRAPH, segment, microbatch=microbatch)
        contributors = list(find_contributors(self.wiring, segment, number, microbatch))
        for contributor in contributors:
            yield name_gradient(self.wiring, contributor)
        if self.wiring.skips[segment]:
            for contributor in contributors:
                if contributor.op is Op.B:
                    yield name_skip_gradients(self.wiring, contributor)
        yield from self._tap_reads(segment, number, microbatch)
        if self.wiring.flows[segment][number].onward is not None:
            yield Value(Kind.LEAF, segment, microbatch=microbatch)
            if self.skips_before(segment):
                yield Value(Kind.SKIPS, segment, microbatch=microbatch)

    def _backward_writes(self, action: Action) -> Iterator[Value]:
        segment, number = action.segment, action.flow or 0
        flow = self.wiring.flows[segment][number]
        if flow.train and segment in self.wiring.weights_once:
            yield _name_kept_gradient(action)
        elif flow.train:
            yield from self._sums(segment, number)
        if flow.onward is not None:
            yield name_gradient(self.wiring, action)
            if self.skips_before(segment):
                yield name_skip_gradients(self.wiring, action)

    def _sums(self, segment: int, number: int) -> Iterator[Value]:
        """The sums that a flow of a segment adds gradients of parameters to."""
        for step in self.wiring.steps_of(segment):
            is_apart = (segment, number) in self.apart.get(step, ())
            # Without a flow it is `.grad` itself: the first flow always adds there, so a single
            # flow costs no more.
            yield self._name_sum(step, segment, number) if is_apart else _name_grad(step)

    def _name_sum(self, step: int, segment: int, number: int) -> Value:
        """What a flow through a segment adds to the gradients of a step, summed apart."""
        op = Op.W if segment in self.wiring.weights_once else Op.B
        maker = "" if segment == step and op is Op.B else str(Action(op, segment))
        return Value(Kind.WEIGHT_GRADIENT, step, number, maker)

    def _tap_reads(self, segment: int, number: int, microbatch: int) -> Iterator[Value]:
        """What losses have left for a flow at inner outputs."""
        for name, objective in self.tap_gradients[segment, number]:
            yield Value(Kind.TAP_EDGE, name, microbatch=microbatch)
            yield name_tap_gradient(self.wiring, name, objective, microbatch)

    def _weights_reads(self, action: Action) -> Iterator[Value]:
        segment, microbatch = action.segment, action.microbatch
        yield Value(Kind.GRAPH, segment, microbatch=microbatch)
        # In the order of flows, which is that of the sum.
        for contributor in find_weight_contributors(self.wiring, segment, microbatch):
            is_kept = contributor.op is Op.B and contributor.segment == segment
            name = _name_kept_gradient if is_kept else partial(name_gradient, self.wiring)
            yield name(contributor)
        for number, flow in enumerate(self.wiring.flows[segment]):
            yield from self._tap_reads(segment, number, microbatch) if flow.train else ()

    def _weights_writes(self, action: Action) -> Iterator[Value]:
        yield from self._sums(action.segment, 0)

    def skips_before(self, segment: int) -> bool:
        """Whether more than the features lives at the beginning of a segment."""
        return segment > 0 and len(self.wiring.skips[segment - 1]) > 0

    def _step_reads(self, action: Action) -> Iterator[Value]:
        yield _name_grad(action.segment)
        for segment, number in self.apart.get(action.segment, ()):
            yield self._name_sum(action.segment, segment, number)

    def _head_step_reads(self, action: Action) -> Iterator[Value]:
        yield Value(Kind.HEAD_GRADIENT, self.wiring.objective_at(action.segment, action.flow).loss)


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


def looks_at_module_input(wiring: Wiring, objective: Objective) -> bool:
    """Whether a loss looks at the input of its module. (Nothing is trained before the first module,
    so that a second-order loss there has no input to differentiate by.)
    """
    loss = wiring.head(objective)["loss"]
    module = wiring.segments[objective.segment].module
    return bool(loss.module_input) or (objective.second_order and module > 0)


def _name_grad(step: int) -> Value:
    """`.grad` of the parameters that the step of a segment updates."""
    return Value(Kind.WEIGHT_GRADIENT, step)
