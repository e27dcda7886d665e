"""B: the backward of one flow through a segment, and the sums of gradients that flows are made of.
W: the gradients of the weights, of all flows at once.

::

      segment s-1          cut           segment s             cut
    ... ──────────► output ┊ h ─► leaf ─► layers ─► output ─► root      forward
                           ┊                                   │
        part of g(s-1) ◄───┊─── leaf.grad ◄── layers ◄─ store ◄┘        backward

The root is a scalar at the end of the segment's graph. Its backward takes the gradient out of the
store, where the sum of all writers was put just before, so that the graph itself keeps no output.

Where weights' gradients are made once, B leaves the parameters out and keeps the gradient that it
began with. W begins with the sum of these, and leaves the input out.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from localprop.engine.plan import StepPlan
from localprop.engine.skips import SkipGradients
from localprop.engine.store import StepContext, Store
from localprop.errors import BadInput
from localprop.schedule.schedule import Action
from localprop.schedule.values import Kind, Value

# Where the gradient stands that the running backward begins with; one runs at a time.
INJECTED = Value(Kind.GRADIENT, "root")


class InjectGradient(torch.autograd.Function):
    """The root of a segment's graph, whose backward takes the gradients at the segment's outputs
    out of the store.

    `autograd.backward(output, gradient)` would keep the gradient alive until the whole backward has
    ended, since Python's frames refer to it. Taken out of the store it dies at its first use. Nor
    does the root keep the output's storage alive.
    """

    @staticmethod
    def forward(ctx: Any, store: Store, scalar: Tensor, *outputs: Tensor) -> Tensor:
        ctx.store = store
        return scalar.detach()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.store.pop(INJECTED)


def pop_gradient(
    leaf: Tensor, scale: float, others: Iterable[Tensor], kept: Iterable[Tensor] = ()
) -> Tensor | None:
    """The gradient of a leaf, which forgets it, times a number; None if it has none.

    Args:
        leaf: the leaf.
        scale: the number.
        others: the other leaves of the same backward.
        kept: gradients that it began with and that somebody reads later.
    """
    # Several flows may end at one leaf, and autograd would add the next one's gradient to this.
    gradient, leaf.grad = leaf.grad, None
    if gradient is None:
        return None
    # Where an operation passes its gradient on as it is, behind views, autograd may give one
    # tensor's memory to two leaves: with x.unsqueeze(1) + p.unsqueeze(1), to x and to p. Each of
    # the gradients is added to in place later on, so they must not share it.
    memory = gradient.untyped_storage()._cdata
    for other in (*kept, *(other.grad for other in others)):
        if other is not None and other.untyped_storage()._cdata == memory:
            gradient = gradient.clone()
            break
    return gradient if scale == 1 else gradient.mul_(scale)


class GradientPart:
    """Writes one of the parts that a gradient is the sum of.

    Parts are added in the order of their makers, losses first, whatever the order in which they
        come: then a sum of three or more is the same to the bit on any number of ranks. So a part
        that comes early waits, and one that completes the front of the order is added at once, in
        place; no more is held than must be::

        makers in order    2L   3B.0   3B.1
        they come          2L   3B.1          3B.0
        held               2L   2L, 3B.1      2L + 3B.0 + 3B.1

    Args:
        plan: of the step.
        part: the value that is written.
    """

    def __init__(self, plan: StepPlan, part: Value) -> None:
        liveness = plan.liveness
        reader = liveness.last_reader[part]
        parts = [v for v in liveness.operands[reader].reads if v.kind is part.kind]
        order = sorted(parts, key=liveness.written.__getitem__)
        place, come = parts.index(part), set(order[: order.index(part)])
        # The sum grows under the name of its first part, where the reader looks for it.
        self._part, self._sum = part, parts[0]
        self._waits = not come.issuperset(parts[:place])
        self._starts = place == 0
        behind = parts[place + 1 :]
        ready = next((i for i, value in enumerate(behind) if value not in come), len(behind))
        self._behind = () if self._waits else tuple(behind[:ready])

    def write(self, store: Store, gradient: Tensor) -> None:
        """Put the part into the store; nobody else may write to it any more."""
        if self._waits or self._starts:
            store[self._part] = gradient
        else:
            store[self._sum].add_(gradient)
        for value in self._behind:
            store[self._sum].add_(store.pop(value))


class RunBackward:
    """B, the backward of one flow through a segment, or W, that of all flows to its weights.

    Args:
        plan: of the step.
        action: the backward.
    """

    def __init__(self, plan: StepPlan, action: Action) -> None:
        segment, microbatch = action.segment, action.microbatch
        reads, writes = plan.liveness.operands[action]
        self._graph = Value(Kind.GRAPH, segment, microbatch=microbatch)
        self._is_last = plan.liveness.takes(action, self._graph)
        # The first parts' names: by now all others have been added to them. W adds what flows that
        # went onward have kept, and what a flow that ends here brings.
        firsts = (find_first(reads, kind) for kind in (Kind.KEPT_GRADIENT, Kind.GRADIENT))
        self._gradient, *self._added = [value for value in firsts if value is not None]
        kept = find_first(writes, Kind.KEPT_GRADIENT)
        self._kept = None if kept is None else GradientPart(plan, kept)
        # `inputs=` names all that autograd may compute. A flow that only passes through leaves the
        # parameters out, which saves the gradients of the weights.
        by_step = plan.parameters[segment]
        sums = [value for value in writes if value.kind is Kind.WEIGHT_GRADIENT]
        self._parameters = list(chain(*by_step.values())) if sums else []
        self._apart = [(v, by_step[int(v.at)]) for v in sums if v.flow is not None]
        leaf = Value(Kind.LEAF, segment, microbatch=microbatch)
        self._leaf = (leaf, plan.liveness.takes(action, leaf)) if leaf in reads else None
        self._scale = plan.wiring.flows[segment][action.flow or 0].scale
        onward = find_first(writes, Kind.GRADIENT)
        self._onward = None if onward is None else GradientPart(plan, onward)
        skips = plan.wiring.skips
        has_skips = bool(skips[segment]) or (onward is not None and bool(skips[segment - 1]))
        self._skips = SkipGradients(plan, action) if has_skips else None
        self._taps = find_taps(plan, action)
        self._scalar = plan.scalar
        self._device_type = plan.device_type

    def __call__(self, step: StepContext) -> None:
        """Run it: gradients of parameters add up in `.grad`, and that of the input goes to the
        segment before.
        """
        store = step.store
        root = store.pop(self._graph) if self._is_last else store[self._graph]
        for value in self._added:
            store[self._gradient].add_(store.pop(value))
        kept = [] if self._kept is None else [store[self._gradient]]
        store[INJECTED] = [store.pop(self._gradient)]
        inputs, leaf, skips = self._parameters, None, list[Tensor]()
        if self._leaf is not None:
            value, takes = self._leaf
            leaf = store.pop(value) if takes else store[value]
            inputs = [*inputs, leaf]
        if self._skips is not None:
            store[INJECTED] += self._skips.take_gradients(store)
            skips = self._skips.take_leaves(store)
            # One from before the reach of all losses asks for no gradient.
            inputs = [*inputs, *(skip for skip in skips if skip.requires_grad)]
        roots: list[Any] = [root]
        gradients = [self._scalar]
        for edge, gradient in self._take_taps(store) if self._taps else ():
            roots.append(edge)
            gradients.append(gradient)
        if self._kept is not None:
            kept += gradients[1:]
        versions = [gradient._version for gradient in kept]
        # Autograd adds to `.grad` and nowhere else, so this flow's sum stands there during its
        # backward.
        if self._apart:
            self._swap_gradients(store)
        # One call for all roots, so that autograd runs each node once, with its summed gradient.
        # The graph's last reader frees what the nodes have saved, while it runs; for a flow that
        # comes later they have to stay.
        retain = not self._is_last
        if step.autocast:  # backwards follow the dtypes of their forwards
            with torch.autocast(self._device_type, enabled=False):
                torch.autograd.backward(roots, gradients, retain_graph=retain, inputs=inputs)
        else:
            torch.autograd.backward(roots, gradients, retain_graph=retain, inputs=inputs)
        gradients.clear()
        if self._kept is not None:
            check_unchanged(kept, versions)
            self._kept.write(store, kept[0])
        if leaf is not None and self._onward is not None:
            onward = pop_gradient(leaf, self._scale, inputs, kept)
            if self._skips is not None:
                others = [pop_gradient(skip, self._scale, inputs, kept) for skip in skips]
                onward = self._skips.leave(store, onward, others)
            # Nothing here may have read the features, where all goes around a cut.
            self._onward.write(store, torch.zeros_like(leaf) if onward is None else onward)
        if self._apart:
            self._swap_gradients(store)

    def _take_taps(self, store: Store) -> list[tuple[GradientEdge, Tensor]]:
        """The gradients that losses have left at inner outputs, and where; a loss need not leave
        one.
        """
        found = []
        for edge, takes_edge, gradient, takes in self._taps:
            at = store.pop(edge, None) if takes_edge else store.get(edge)
            left = store.pop(gradient, None) if takes else store.get(gradient)
            if at is not None and left is not None:
                found.append((at, left))
        return found

    def _swap_gradients(self, store: Store) -> None:
        """Exchange `.grad` of parameters for the sums that are kept apart, next to which the store
        has their parameters.
        """
        for value, parameters in self._apart:
            _, apart = store.pop(value, None) or (parameters, [None] * len(parameters))
            store[value] = [parameters, [parameter.grad for parameter in parameters]]
            for parameter, gradient in zip(parameters, apart, strict=True):
                parameter.grad = gradient


def find_first(values: Iterable[Value], kind: Kind) -> Value | None:
    """The first value of a kind, if there is any."""
    return next((value for value in values if value.kind is kind), None)


def check_unchanged(kept: Iterable[Tensor], versions: Iterable[int]) -> None:
    """Check that a backward has not written into gradients that are read once more.

    Raises:
        BadInput: it has.
    """
    if any(each._version != before for each, before in zip(kept, versions, strict=True)):
        raise BadInput(
            "a layer's backward, or a hook, wrote into the gradient that it was given, which the "
            "gradients of the weights are made of, too: let it return a new tensor, or give "
            'weight_gradients="each".'
        )


def find_taps(plan: StepPlan, action: Action) -> list[tuple[Value, bool, Value, bool]]:
    """The inner outputs whose gradients a backward begins with: edge, whether this takes it,
    gradient, whether this takes it.

    They come in the order in which the losses ran.
    """
    liveness = plan.liveness
    left = [v for v in liveness.operands[action].reads if v.kind is Kind.TAP_GRADIENT]
    order = sorted(left, key=liveness.written.__getitem__)
    found = []
    for gradient in order:
        edge = Value(Kind.TAP_EDGE, gradient.at, microbatch=action.microbatch)
        rest = order[order.index(gradient) + 1 :]
        # Several losses may look at one output. They share its edge, and only the last of them may
        # take that.
        used_again = any(v.at == gradient.at for v in rest)
        takes_edge = liveness.takes(action, edge) and not used_again
        found.append((edge, takes_edge, gradient, liveness.takes(action, gradient)))
    return found
