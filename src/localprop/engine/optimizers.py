"""S and H: the optimizers of a step, one for each segment and each loss.

Each steps as soon as its last gradient is there. A deferred step uses the hyperparameters of the
batch that it steps for, since a learning rate scheduler may have moved on by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from localprop.engine.loss_scaler import LossScaler
from localprop.engine.plan import StepPlan
from localprop.engine.store import Backward, StepContext
from localprop.engine.undo import Undo
from localprop.schedule.schedule import REDUCES, Action, Op
from localprop.schedule.values import Kind, Value


class Optimizers:
    """Steps the optimizer of an action. An optimizer that is missing is stepped by somebody else.

    Args:
        by_action: for each action S or H its optimizer.
        scaler: scales losses up and gradients down; by default one that does neither.
    """

    def __init__(
        self, by_action: Mapping[Action, Optimizer], scaler: GradScaler | None = None
    ) -> None:
        self.by_action = by_action
        self.scaler = LossScaler(scaler or GradScaler("cpu", enabled=False))
        self.backward: Backward = (
            self.scaler.backward if self.scaler.is_enabled else Tensor.backward
        )
        self._kept: dict[Optimizer, list[dict[str, Any]]] = {}

    def all(self) -> list[Optimizer]:
        """All of them, in the order of the forward."""
        steps = sorted(self.by_action, key=lambda step: (step.segment, step.op, step.flow or 0))
        return [self.by_action[step] for step in steps]

    def get(self, action: Action) -> Optimizer | None:
        """The optimizer of a step, or of the sum over replicas that prepares the step."""
        op = REDUCES.get(action.op, action.op)
        return self.by_action.get(Action(op, action.segment, action.flow))

    def gradients(self, action: Action) -> list[Tensor]:
        """The gradients that an action's step will use."""
        optimizer = self.get(action)
        groups = optimizer.param_groups if optimizer else []
        return [p.grad for group in groups for p in group["params"] if p.grad is not None]

    def step(self, step: Action, *, deferred: bool) -> None:
        """Step, and drop the gradients.

        Args:
            step: S or H, as in `by_action`.
            deferred: whether to use the hyperparameters that were kept for its batch.
        """
        optimizer = self.by_action.get(step)
        if optimizer is None:
            return
        if deferred:
            with self._restored(optimizer):
                self._step(optimizer)
        else:
            self._step(optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step_shared(self, optimizer: Optimizer) -> None:
        """After the last action: step an optimizer of all parameters, and drop the gradients."""
        try:
            self._step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        finally:
            self.end_step()

    def end_step(self) -> None:
        """Move the scale of losses on, also after a failure."""
        if self.scaler.has_stepped:
            self.scaler.update()

    def _step(self, optimizer: Optimizer) -> None:
        if self.scaler.is_enabled:
            self.scaler.step(optimizer)
        else:
            optimizer.step()

    def keep_hyperparameters(self, deferred: Iterable[Action]) -> None:
        """Keep today's hyperparameters for deferred steps."""
        steps = [self.get(action) for action in deferred if action.op in (Op.S, Op.H)]
        self._kept = {
            optimizer: [_hyperparameters(group) for group in optimizer.param_groups]
            for optimizer in steps
            if optimizer is not None
        }

    @contextmanager
    def _restored(self, optimizer: Optimizer) -> Iterator[None]:
        """Use the hyperparameters that were kept; what the optimizer itself changes among them
        meanwhile stays changed.
        """
        moved_on = []
        for group, kept in zip(optimizer.param_groups, self._kept.pop(optimizer), strict=True):
            now = _hyperparameters(group)
            moved_on.append(
                # Only what the loop has changed comes back afterwards. What is equal now may be the
                # optimizer's own, such as a counter, which its step is about to change.
                {key: now[key] for key in kept if not values_equal(kept[key], now[key])}
            )
            group.update(kept)
        try:
            yield
        finally:
            for group, now in zip(optimizer.param_groups, moved_on, strict=True):
                group.update(now)


def values_equal(one: Any, other: Any) -> bool:
    """Whether two values of a hyperparameter, tensors or not, are equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        # PyTorch's schedulers write into a learning rate that is a tensor, so a reference would
        # move on with it.
        key: value.clone() if isinstance(value, Tensor) else value
        for key, value in group.items()
        if key != "params"
    }


class RunStep:
    """S or H: the optimizer step of a segment, or of a loss's own parameters.

    Args:
        plan: of the step.
        action: the step.
        optimizers: step it.
        finish_reduce: waits for the sum of the gradients over the replicas, if there are several.
        undo: keeps parameters and state as they are, if steps can be taken back.
    """

    def __init__(
        self,
        plan: StepPlan,
        action: Action,
        optimizers: Optimizers,
        finish_reduce: Callable[[Action], object] | None,
        undo: Undo | None = None,
    ) -> None:
        self._undo = undo
        self._action, self._optimizers, self._finish_reduce = action, optimizers, finish_reduce
        self._key = Action(action.op, action.segment, action.flow)
        self._apart = find_sums_apart(plan, action)
        self._device_type = plan.device_type

    def __call__(self, step: StepContext) -> None:
        """Add up the gradients, and step."""
        if self._finish_reduce is not None:
            self._finish_reduce(self._action)
        # Also without a step: the host of `learner.backward` finds its gradients in `.grad` alone.
        if self._apart:
            self._add_sums(step)
        if not step.updating:
            return
        if self._undo is not None and (optimizer := self._optimizers.get(self._key)) is not None:
            self._undo.keep_optimizer(optimizer)
        # A step runs in a hook, so inside the forward's autocast, which would cast the matrix
        # products of optimizers such as Muon.
        if step.autocast:
            with torch.autocast(self._device_type, enabled=False):
                self._optimizers.step(self._key, deferred=self._action.deferred)
        else:
            self._optimizers.step(self._key, deferred=self._action.deferred)
        if self._action.op is Op.S:
            step.updated.append(self._action.segment)

    def _add_sums(self, step: StepContext) -> None:
        """Add the gradients that were kept apart by flow, in the order of flows."""
        for value in self._apart:
            for parameter, gradient in zip(*step.store.pop(value), strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient
                elif gradient is not None:
                    parameter.grad.add_(gradient)


def find_sums_apart(plan: StepPlan, action: Action) -> tuple[Value, ...]:
    """The gradients of a step that are kept apart by flow, in the order of flows."""
    reads = plan.liveness.operands[action].reads if action.op in (Op.S, Op.REDUCE_S) else ()
    return tuple(v for v in reads if v.kind is Kind.WEIGHT_GRADIENT and v.flow is not None)
