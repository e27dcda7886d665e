"""What losses look at besides their features: inputs of their modules, inner outputs, and parameters that they borrow.

::

    segment        ──► F ──► inner ──► F ──► features ──►          the network's graph
                   │           ┆               ┆
    loss        inlet        tap ◄──────── L ──┘                   the loss's own graph
                               └─ error ─► B                       joins the loss's flow where the inner output was made
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from localprop.engine.gradient_sums import FlowKey, scaled
from localprop.engine.step_context import StepContext
from localprop.rule.losses import LocalLoss, LossInputs
from localprop.schedule.wiring import Objective, Wiring


class LossInputStore:
    """Shows each objective what it asks for, and takes back the errors that it leaves there.

    Args:
        model: the primary network.
        wiring: with objectives.
        own: the segments that run here.
    """

    def __init__(self, model: nn.Module, wiring: Wiring, own: Iterable[int]) -> None:
        objectives = [objective for objective in wiring.objectives if objective.segment in own]
        self._wiring = wiring
        self._again: tuple[StepContext, int, int] | None = None
        self._last = {objective.segment: objective for objective in objectives}
        self._second_order = frozenset(o.segment for o in objectives if o.second_order)
        self._reads_module_input = frozenset(
            wiring.segments[o.segment].module
            for o in objectives
            if _loss(wiring, o).module_input or o.second_order
        )
        names = {tap.name: tap.segment for objective in objectives for tap in objective.taps}
        self._tapped = [(name, s, model.get_submodule(name)) for name, s in names.items()]
        named = dict(model.named_parameters())
        self._resolve_copies = {
            o.key: [
                (wiring.head(o).get_parameter(a.target), named[a.borrow.source], a.borrow)
                for a in o.copies
            ]
            for o in objectives
        }

    def second_order(self, s: int) -> bool:
        """Whether a loss at the end of segment s differentiates through it."""
        return s in self._second_order

    # --- F ------------------------------------------------------------------------------------------------------------

    def segment_input(
        self, run: StepContext, s: int, segment_input: Tensor, modified_in_place: bool
    ) -> Tensor:
        """What segment s runs on; kept if a loss of its module asks for it."""
        segment = self._wiring.segments[s]
        if not segment.starts_module or segment.module not in self._reads_module_input:
            return segment_input
        place = (segment.module, run.microbatch)
        if s not in self._second_order:
            run.inputs_for_losses[place] = (
                segment_input.detach().clone() if modified_in_place else segment_input.detach()
            )
            return segment_input
        if segment.module > 0:
            run.inputs_for_losses[place] = (
                segment_input if segment_input.requires_grad else segment_input.requires_grad_()
            )
        return segment_input.clone() if modified_in_place else segment_input

    def hooked(self, run: StepContext) -> Iterator[RemovableHandle]:
        """Hooks that note inner outputs; one that the network writes into later is handed on as a copy."""
        for name, s, module in self._tapped:
            yield module.register_forward_hook(
                self._hook(run, name, s, copied=name in self._wiring.layers.modified_outputs)
            )

    @contextmanager
    def recomputed(self, run: StepContext, s: int, m: int) -> Iterator[None]:
        """While segment s of micro-batch m runs again, be it of the batch before, inner outputs are its own."""
        self._again = run, s, m
        try:
            yield
        finally:
            self._again = None

    def _hook(
        self, run: StepContext, name: str, s: int, *, copied: bool
    ) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            of, running, m = self._again or (run, s, run.microbatch)
            if running == s:  # other segments are stubs
                of.tapped[name, m] = output
            return output.clone() if copied else output

        return hook

    def features(self, s: int, output: Tensor) -> Tensor | None:
        """What the losses at the end of segment s look at."""
        if s not in self._last:
            return None
        return output if s in self._second_order else output.detach()

    # --- L ------------------------------------------------------------------------------------------------------------

    def inputs(self, run: StepContext, objective: Objective) -> tuple[Tensor, LossInputs]:
        """The features, and what else an objective's loss may read."""
        features, m = run.features, run.microbatch
        assert features is not None
        last = self._is_last(objective)
        if last:
            run.features = None
        if not objective.second_order:
            features = features.detach().requires_grad_(objective.flow is not None)
        taps = {}
        for tap in objective.taps:
            tensor = run.tapped[tap.name, m]
            taps[tap.name] = (
                tensor
                if objective.second_order
                else tensor.detach().requires_grad_(tap.flow is not None)
            )
        place = (self._wiring.segments[objective.segment].module, m)
        module_input = (
            run.inputs_for_losses.pop(place, None) if last else run.inputs_for_losses.get(place)
        )
        errors = run.gradients_for_next.setdefault(m, []) if objective.second_order else None
        return features, LossInputs(*run.batch, module_input, taps, errors)

    def leave_errors(self, run: StepContext, objective: Objective, inputs: LossInputs) -> None:
        """After its loss's backward: keep the errors at inner outputs for their flows, and drop what nobody reads again."""
        m = run.microbatch
        for tap in objective.taps:
            error = inputs.taps[tap.name].grad if tap.flow is not None else None
            if error is not None and tap.flow is not None:
                place = FlowKey(tap.segment, tap.flow, m)
                run.tap_errors.setdefault(place, []).append((tap.name, scaled(error, tap.scale)))
            elif self._is_last(objective) and not self._awaited(run, tap.name, m):
                run.tapped.pop((tap.name, m), None)
        if objective.second_order and inputs.module_input is not None:
            inputs.module_input.grad = None

    def _is_last(self, objective: Objective) -> bool:
        """Whether no other loss at its segment's end comes after it."""
        return self._last[objective.segment] is objective

    @staticmethod
    def _awaited(run: StepContext, name: str, m: int) -> bool:
        """Whether another loss has left an error at an inner output."""
        return any(
            place.microbatch == m and name == n
            for place, left in run.tap_errors.items()
            for n, _ in left
        )

    # --- B ------------------------------------------------------------------------------------------------------------

    def ends(
        self, run: StepContext, place: FlowKey, *, last: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The inner outputs at which errors of a flow begin besides the segment's end, and those errors."""
        left = run.tap_errors.pop(place, [])
        tensors = [run.tapped[name, place.microbatch] for name, _ in left]
        if last:
            for name, s, _ in self._tapped:
                if s == place.segment:
                    run.tapped.pop((name, place.microbatch), None)
        return tensors, [error for _, error in left]

    # --- P ------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def copy(self, objective: Objective, number: int) -> None:
        """In step `number`, copy or average the parameters that an objective borrows."""
        for target, source, borrow in self._resolve_copies[objective.key]:
            if number % borrow.every == 0:
                target.lerp_(source.to(target.dtype), 1 - borrow.decay)

    @torch.no_grad()
    def copy_first(self) -> None:
        """Before the first step: what is copied and not averaged begins as a copy."""
        for copies in self._resolve_copies.values():
            for target, source, borrow in copies:
                if borrow.decay == 0:
                    target.copy_(source)


def _loss(wiring: Wiring, objective: Objective) -> LocalLoss:
    loss = wiring.head(objective)["loss"]
    assert isinstance(loss, LocalLoss)
    return loss
