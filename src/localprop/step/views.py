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

from localprop.rule.losses import LocalLoss, Seen
from localprop.step.errors import Place, scaled
from localprop.step.state import State
from localprop.step.wiring import Objective, Wiring


class Views:
    """Shows each objective what it asks for, and takes back the errors that it leaves there.

    Args:
        model: the primary network.
        wiring: with objectives.
        own: the segments that run here.
    """

    def __init__(self, model: nn.Module, wiring: Wiring, own: Iterable[int]) -> None:
        objectives = [objective for objective in wiring.objectives if objective.segment in own]
        self._wiring = wiring
        self._again: tuple[State, int, int] | None = None
        self._last = {objective.segment: objective for objective in objectives}
        self._attached = frozenset(o.segment for o in objectives if o.attached)
        self._reads_inlet = frozenset(
            wiring.segments[o.segment].module for o in objectives if _loss(wiring, o).inlet or o.attached
        )
        names = {tap.name: tap.segment for objective in objectives for tap in objective.taps}
        self._tapped = [(name, s, model.get_submodule(name)) for name, s in names.items()]
        named = dict(model.named_parameters())
        self._loans = {
            o.place: [(wiring.head(o).get_parameter(a.target), named[a.borrow.source], a.borrow) for a in o.loans]
            for o in objectives
        }

    def attached(self, s: int) -> bool:
        """Whether a loss at the end of segment s differentiates through it."""
        return s in self._attached

    # --- F ------------------------------------------------------------------------------------------------------------

    def entered(self, run: State, s: int, entered: Tensor, overwritten: bool) -> Tensor:
        """What segment s runs on; kept if a loss of its module asks for it."""
        segment = self._wiring.segments[s]
        if not segment.inlet or segment.module not in self._reads_inlet:
            return entered
        place = (segment.module, run.microbatch)
        if s not in self._attached:
            run.inlets_seen[place] = entered.detach().clone() if overwritten else entered.detach()
            return entered
        if segment.module > 0:
            run.inlets_seen[place] = entered if entered.requires_grad else entered.requires_grad_()
        return entered.clone() if overwritten else entered

    def hooked(self, run: State) -> Iterator[RemovableHandle]:
        """Hooks that note inner outputs; one that the network writes into later is handed on as a copy."""
        for name, s, module in self._tapped:
            yield module.register_forward_hook(self._hook(run, name, s, copied=name in self._wiring.layers.spoiled))

    @contextmanager
    def again(self, run: State, s: int, m: int) -> Iterator[None]:
        """While segment s of micro-batch m runs again, be it of the batch before, inner outputs are its own."""
        self._again = run, s, m
        try:
            yield
        finally:
            self._again = None

    def _hook(self, run: State, name: str, s: int, *, copied: bool) -> Callable[[nn.Module, object, Tensor], Tensor]:
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
        return output if s in self._attached else output.detach()

    # --- L ------------------------------------------------------------------------------------------------------------

    def seen(self, run: State, objective: Objective) -> tuple[Tensor, Seen]:
        """The features, and what else an objective's loss may read."""
        features, m = run.features, run.microbatch
        assert features is not None
        last = self._is_last(objective)
        if last:
            run.features = None
        if not objective.attached:
            features = features.detach().requires_grad_(objective.flow is not None)
        taps = {}
        for tap in objective.taps:
            tensor = run.tapped[tap.name, m]
            taps[tap.name] = tensor if objective.attached else tensor.detach().requires_grad_(tap.flow is not None)
        place = (self._wiring.segments[objective.segment].module, m)
        inlet = run.inlets_seen.pop(place, None) if last else run.inlets_seen.get(place)
        errors = run.handed_on.setdefault(m, []) if objective.attached else None
        return features, Seen(*run.batch, inlet, taps, errors)

    def leave_errors(self, run: State, objective: Objective, seen: Seen) -> None:
        """After its loss's backward: keep the errors at inner outputs for their flows, and drop what nobody reads again."""
        m = run.microbatch
        for tap in objective.taps:
            error = seen.taps[tap.name].grad if tap.flow is not None else None
            if error is not None and tap.flow is not None:
                place = Place(tap.segment, tap.flow, m)
                run.tap_errors.setdefault(place, []).append((tap.name, scaled(error, tap.scale)))
            elif self._is_last(objective) and not self._awaited(run, tap.name, m):
                run.tapped.pop((tap.name, m), None)
        if objective.attached and seen.inlet is not None:
            seen.inlet.grad = None

    def _is_last(self, objective: Objective) -> bool:
        """Whether no other loss at its segment's end comes after it."""
        return self._last[objective.segment] is objective

    @staticmethod
    def _awaited(run: State, name: str, m: int) -> bool:
        """Whether another loss has left an error at an inner output."""
        return any(place.microbatch == m and name == n for place, left in run.tap_errors.items() for n, _ in left)

    # --- B ------------------------------------------------------------------------------------------------------------

    def ends(self, run: State, place: Place, *, last: bool) -> tuple[list[Tensor], list[Tensor]]:
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
        for target, source, borrow in self._loans[objective.place]:
            if number % borrow.every == 0:
                target.lerp_(source.to(target.dtype), 1 - borrow.decay)

    @torch.no_grad()
    def copy_first(self) -> None:
        """Before the first step: what is copied and not averaged begins as a copy."""
        for loans in self._loans.values():
            for target, source, borrow in loans:
                if borrow.decay == 0:
                    target.copy_(source)


def _loss(wiring: Wiring, objective: Objective) -> LocalLoss:
    loss = wiring.head(objective)["loss"]
    assert isinstance(loss, LocalLoss)
    return loss
