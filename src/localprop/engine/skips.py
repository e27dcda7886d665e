"""Skips: what lives at a cut besides the features.

These are further tensors that a module returns, and those that go around the cut. Each is a leaf of
the graphs after the cut at which it was handed on.

::

    segment 0          cut         segment 1          cut         segment 2
    layers ─► h0 ───────┊──► leaf ─► layers ─► h1 ─────┊──► leaf ─► layers ─► root
           └► k0 ───────┊──► leaf ─────────────────────┊──────────► + ─┘
                        ┊                              ┊
           gradients at k0: of B1, and what B1 passes on ◄── of B2

Credit follows the table: a gradient at a skip goes on with the flow that has made it, segment by
segment, and ends where the flow ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from localprop.engine.plan import StepPlan
from localprop.engine.store import StepContext, Store
from localprop.network.layers import HandedOn
from localprop.network.outputs import list_tensors, replace_tensors
from localprop.schedule.operands import Kind, Value
from localprop.schedule.schedule import Action

Gradients = list[Tensor | None]
# Gradients at skips that pass by the segment whose backward runs.
PASSING = Value(Kind.SKIP_GRADIENTS, "passing")


def cut_bundle(
    step: StepContext,
    handed_on: Sequence[HandedOn],
    output: Any,
    cut: Callable[[Tensor], Tensor],
) -> Any:
    """Cut at the return of a module that returns more than a tensor.

    Args:
        step: gets the tensors besides the features.
        handed_on: which tensors go on.
        output: what the module returns.
        cut: ends the segment with the features, and gives what takes their place.

    Returns:
        The output with other tensors.
    """
    features, *others = handed_on
    returned = list_tensors(output)
    step.made = [returned[each.positions[0]] for each in others]
    held = [returned[features.positions[0]]]
    del returned
    output = replace_tensors(output, features.positions, cut(held.pop()))
    for each, made in zip(others, step.made, strict=True):
        entered = made.clone() if each.modified_in_place else made
        output = replace_tensors(output, each.positions, entered)
    step.made = []
    return output


@dataclass(frozen=True)
class TakeSkips:
    """A change to a segment's input that leaves it alone: what lives here besides is kept.

    Attributes:
        value: what backwards read; None if none goes on from here.
        kept: of the features and the skips, those that are read after the segment's end.
    """

    value: Value | None
    kept: tuple[int, ...]

    def __call__(self, step: StepContext, segment_input: Tensor) -> Tensor:
        skips = [*step.made, *step.around]
        if self.value is not None:
            for tensor in step.made:
                tensor.requires_grad_()
            step.store[self.value] = skips
        live = [segment_input, *skips]
        step.around = [live[i] for i in self.kept]
        return segment_input


def take_skips(plan: StepPlan, action: Action) -> TakeSkips | None:
    """What F does to what lives at the beginning of its segment besides the features, if anything
    does, or goes around its end.
    """
    skips, segment = plan.wiring.skips, action.segment
    if not segment or not (skips[segment - 1] or skips[segment].kept):
        return None
    value = Value(Kind.SKIPS, segment, microbatch=action.microbatch)
    is_read = value in plan.liveness.operands[action].writes
    return TakeSkips(value if is_read else None, skips[segment].kept)


class SkipGradients:
    """What a backward does with gradients at skips.

    Args:
        plan: of the step.
        action: the backward.
    """

    def __init__(self, plan: StepPlan, action: Action) -> None:
        reads, writes = plan.liveness.operands[action]
        here = plan.wiring.skips[action.segment]
        self._parts = [value for value in reads if value.kind is Kind.SKIP_GRADIENTS]
        self._made, self._kept = len(here.made), here.kept
        self._written = next((v for v in writes if v.kind is Kind.SKIP_GRADIENTS), None)
        leaves = next((v for v in reads if v.kind is Kind.SKIPS), None)
        self._leaves = None if leaves is None else (leaves, plan.liveness.takes(action, leaves))
        flow = plan.wiring.flows[action.segment][action.flow or 0]
        self._goes_on, self._scale = flow.onward is not None, flow.scale

    def take_gradients(self, store: Store) -> Gradients:
        """The gradients at what the segment has made besides its features. Those that only pass by
        are left for `leave`, if the flow goes on.
        """
        total: Gradients = [None] * (self._made + len(self._kept))
        for part in self._parts:
            for i, gradient in enumerate(store.pop(part)):
                total[i] = _add(total[i], gradient)
        if self._goes_on:
            store[PASSING] = total[self._made :]
        return total[: self._made]

    def take_leaves(self, store: Store) -> list[Tensor]:
        """The skips at the segment's beginning."""
        if self._leaves is None:
            return []
        value, takes = self._leaves
        leaves: list[Tensor] = store.pop(value) if takes else store[value]
        return leaves

    def leave(self, store: Store, features: Tensor | None, skips: Gradients) -> Tensor | None:
        """Leave the gradients at skips for the segment before; what passes by is added.

        Args:
            store: takes them.
            features: the gradient at the features at the segment's beginning, scaled.
            skips: those at the skips there.

        Returns:
            The gradient at the features, if there is any.
        """
        gradients = [features, *skips]
        for i, gradient in zip(self._kept, store.pop(PASSING), strict=True):
            if gradient is not None and self._scale != 1:
                gradient.mul_(self._scale)
            gradients[i] = _add(gradients[i], gradient)
        if self._written is not None:
            store[self._written] = gradients[1:]
        return gradients[0]


def _add(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one.add_(other)
