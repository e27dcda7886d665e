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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from localprop.engine.plan import StepPlan
from localprop.engine.store import StepContext, Store
from localprop.network.layers import Layers
from localprop.network.outputs import list_tensors, replace_tensors
from localprop.schedule.schedule import Action
from localprop.schedule.values import Kind, Value

Gradients = list[Tensor | None]
# Gradients at skips that pass by the segment whose backward runs.
PASSING = Value(Kind.SKIP_GRADIENTS, "passing")


def cut_bundle(
    step: StepContext,
    layers: Layers,
    layer: int,
    output: Any,
    cut: Callable[[Tensor], Tensor],
) -> Any:
    """Cut at the return of a module that returns more than a tensor.

    Args:
        step: gets the tensors besides the features.
        layers: of the model.
        layer: the layer that ends here.
        output: what the module returns.
        cut: ends the segment with the features, and gives what takes their place.

    Returns:
        The output with other tensors.
    """
    features, *others = layers.handed_on[layer]
    held = _split(step, layers, layer, layers.select_crossing(layer, list_tensors(output)))
    output = replace_tensors(output, features.positions, cut(held.pop()))
    for each, entered in zip(others, _take_made(step, layers, layer), strict=True):
        output = replace_tensors(output, each.positions, entered)
    step.constants = []
    return output


def enter_bundle(
    step: StepContext,
    layers: Layers,
    layer: int,
    received: list[Tensor],
    enter: Callable[[Tensor], Tensor],
) -> dict[int, Tensor]:
    """Enter behind a cut with what another rank has sent.

    Args:
        step: gets the tensors besides the features.
        layers: of the model.
        layer: the layer that ends at the cut.
        received: what has crossed the cut; this empties the list.
        enter: begins the segment with the features, and gives what takes their place.

    Returns:
        Tensors by their places among those that the layer's last module returns.
    """
    held = _split(step, layers, layer, received)
    received.clear()
    entered = [enter(held.pop()), *_take_made(step, layers, layer), *step.constants]
    step.constants = []
    return layers.place_crossing(layer, entered)


def _split(step: StepContext, layers: Layers, layer: int, crossing: list[Tensor]) -> list[Tensor]:
    """Give a step what crosses a cut, but for the features, which are returned alone."""
    count = len(layers.handed_on[layer])
    step.made, step.constants = crossing[1:count], crossing[count:]
    return crossing[:1]


def _take_made(step: StepContext, layers: Layers, layer: int) -> list[Tensor]:
    """Take what stands for the further tensors; copies where the model writes into them."""
    made, step.made = step.made, []
    pairs = zip(layers.handed_on[layer][1:], made, strict=True)
    return [tensor.clone() if each.modified_in_place else tensor for each, tensor in pairs]


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
