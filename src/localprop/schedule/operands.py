"""Operands: what each action of a schedule reads and writes.

A schedule is a program, and its variables are values (values.py). An action reads what earlier ones
have written; the last reader of a value takes it (liveness.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from localprop.schedule.schedule import (
    Action,
    Op,
    find_contributors,
    find_weight_contributors,
)
from localprop.schedule.sums import find_flows_set_apart
from localprop.schedule.values import (
    ACCUMULATORS,
    Kind,
    Value,
    name_context,
    name_grad,
    name_gradient,
    name_kept_gradient,
    name_skip_gradients,
    name_tap_gradient,
)
from localprop.schedule.wiring import Objective, Wiring


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
                yield name_grad(step)

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
            yield name_kept_gradient(action)
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
            yield self._name_sum(step, segment, number) if is_apart else name_grad(step)

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
            name = name_kept_gradient if is_kept else partial(name_gradient, self.wiring)
            yield name(contributor)
        for number, flow in enumerate(self.wiring.flows[segment]):
            yield from self._tap_reads(segment, number, microbatch) if flow.train else ()

    def _weights_writes(self, action: Action) -> Iterator[Value]:
        yield from self._sums(action.segment, 0)

    def skips_before(self, segment: int) -> bool:
        """Whether more than the features lives at the beginning of a segment."""
        return segment > 0 and len(self.wiring.skips[segment - 1]) > 0

    def _step_reads(self, action: Action) -> Iterator[Value]:
        yield name_grad(action.segment)
        for segment, number in self.apart.get(action.segment, ()):
            yield self._name_sum(action.segment, segment, number)

    def _head_step_reads(self, action: Action) -> Iterator[Value]:
        yield Value(Kind.HEAD_GRADIENT, self.wiring.objective_at(action.segment, action.flow).loss)


def looks_at_module_input(wiring: Wiring, objective: Objective) -> bool:
    """Whether a loss looks at the input of its module. (Nothing is trained before the first module,
    so that a second-order loss there has no input to differentiate by.)
    """
    loss = wiring.head(objective)["loss"]
    module = wiring.segments[objective.segment].module
    return bool(loss.module_input) or (objective.second_order and module > 0)
