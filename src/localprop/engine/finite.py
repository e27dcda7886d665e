"""Losses and gradients that are NaN or infinite are found before the optimizers step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from localprop.engine.loss import Losses, LossPlace, find_loss_places
from localprop.engine.store import StepContext
from localprop.engine.user_optimizers import find_owned_parameters
from localprop.errors import NotFinite
from localprop.schedule.schedule import BACKWARDS, Action, Op, Schedule
from localprop.schedule.stage import Stage
from localprop.schedule.values import Kind
from localprop.schedule.wiring import Wiring

_SHOWN = 3  # gradients that a message names


class FiniteCheck:
    """Looks at all losses so far, and at the gradients that steps are about to use.

    Args:
        model: the network.
        wiring: of the step.
        schedule: its actions.
        stage: the part of it that runs here.
    """

    def __init__(self, model: nn.Module, wiring: Wiring, schedule: Schedule, stage: Stage) -> None:
        self._wiring, self._schedule = wiring, schedule
        self._places = find_loss_places(wiring)
        self._owned = find_owned_parameters(model, wiring, stage.segments)
        self._all = [each for named in self._owned.values() for each in named]

    def __call__(self, step: StepContext, action: Action | None = None) -> None:
        """Look, which waits once for the device.

        Args:
            step: the step.
            action: the S or H whose gradients are looked at; None for all.

        Raises:
            NotFinite: with the losses so far.
        """
        named = self._owned.get(action, []) if action else self._all
        gradients = [parameter.grad for _, parameter in named if parameter.grad is not None]
        found = _find_nonfinite([*step.losses.values(), *gradients, *_list_apart(step)])
        # A prediction of memory runs on fakes, which have no values.
        if all(is_fake(flag) or not flag for flag in found):
            return
        losses = [
            (place, self._find_loss(place.row))
            for place in self._places
            if place.row in step.losses and not torch.isfinite(step.losses[place.row])
        ]
        names = [name for name, parameter in named if _has_bad_gradient(parameter)]
        makers = {name: self._find_maker(name) for name in names[:_SHOWN]}
        found_at = [*(action for _, action in losses), *makers.values()]
        finding = "; ".join(_describe(step, losses, names, self._wiring, makers))
        changed = f"Segments {step.updated} had been stepped. " if step.updated else ""
        skip = '"skip" leaves such batches out, and ' if self._wiring.atomic else ""
        raise NotFinite(
            f"Step {step.number} was not taken: {finding}. {changed}Look at the batch, lower the "
            f'learning rate or warm up longer; on_nonfinite={skip}"ignore" trains on.',
            found_at[0] if found_at else None,
            finding,
            Losses.of(step.losses, self._places),
        )

    def _find_loss(self, row: int) -> Action:
        return next(
            action
            for action in self._schedule
            if action.op is Op.L
            and self._wiring.objective_at(action.segment, action.flow).loss == row
        )

    def _find_maker(self, name: str) -> Action:
        """The last action that adds to the gradient of a parameter."""
        owner = next(step for step, named in self._owned.items() if name in dict(named))
        if owner.op is Op.H:
            return Action(Op.L, owner.segment, owner.flow)
        ops = (*BACKWARDS, Op.L)  # a loss of second order makes gradients itself
        return [a for a in self._schedule if a.op in ops and a.segment == owner.segment][-1]


def _describe(
    step: StepContext,
    losses: list[tuple[LossPlace, Action]],
    names: list[str],
    wiring: Wiring,
    makers: dict[str, Action],
) -> Iterator[str]:
    if losses:
        place, action = losses[0]
        more = f", and {len(losses) - 1} more" if losses[1:] else ""
        yield f"{place} is {float(step.losses[place.row])} (action {action}){more}"
    if names:
        own = [
            f"{name} (module {wiring.segments[maker.segment].module}, action {maker})"
            for name, maker in makers.items()
        ]
        more = f" and {len(names) - len(own)} more" if names[len(own) :] else ""
        yield f"NaN or infinity is in the gradients of {', '.join(own)}{more}"
    if not losses and not names:
        yield "NaN or infinity is in a gradient"


class CheckedFirst:
    """An instruction that runs if all is finite.

    Args:
        check: looks.
        action: at the gradients of this S or H; None for all.
        run: the instruction.
    """

    def __init__(
        self, check: FiniteCheck, action: Action | None, run: Callable[[StepContext], None]
    ) -> None:
        self._check, self._action, self._run = check, action, run

    def __call__(self, step: StepContext) -> None:
        """Look, and run; a host that steps by itself looks by itself."""
        if step.updating:
            self._check(step, self._action)
        self._run(step)


def _list_apart(step: StepContext) -> Iterator[Tensor]:
    """Gradients that are kept apart by flow, and are added by S alone."""
    for value, kept in step.store.items():
        if value.kind is Kind.WEIGHT_GRADIENT:
            _, gradients = kept
            found = (gradient for gradient in gradients if gradient is not None)
            # One that autograd has expanded cannot be written into.
            yield from (each.contiguous() if 0 in each.stride() else each for each in found)


def _has_bad_gradient(parameter: Tensor) -> bool:
    return parameter.grad is not None and any(map(bool, _find_nonfinite([parameter.grad])))


def _find_nonfinite(tensors: Iterable[Tensor]) -> list[Tensor]:
    """A flag for each device and dtype: whether a tensor there has NaN or infinity."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        numbers = tensor._values() if tensor.is_sparse else tensor
        numbers = torch.view_as_real(numbers) if numbers.is_complex() else numbers
        groups[numbers.device, numbers.dtype].append(numbers)
    flags = []
    for (device, _), group in groups.items():
        flag, one = torch.zeros(1, device=device), torch.ones(1, device=device)
        # What GradScaler looks with: one kernel for all tensors, which times 1 stay as they are.
        torch._amp_foreach_non_finite_check_and_unscale_(group, flag, one)
        flags.append(flag)
    return flags
