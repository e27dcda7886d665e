"""The optimizers of a step: one for each segment and objective, with the learning rates of the batch that they step for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from localprop.step.schedule import REDUCES, Action, Op


class Optimizers:
    """Steps the optimizer of an action; one that is missing is stepped by somebody else.

    Args:
        made: for each action S or H its optimizer.
    """

    def __init__(self, made: Mapping[Action, Optimizer]) -> None:
        self.made = made
        self._rates: dict[Optimizer, list[dict[str, Any]]] = {}

    def all(self) -> list[Optimizer]:
        """All of them."""
        return [*self.made.values()]

    def of(self, action: Action) -> Optimizer | None:
        """The optimizer that an action, or the step that it prepares, is for."""
        return self.made.get(Action(REDUCES.get(action.op, action.op), action.segment, action.flow))

    def gradients(self, action: Action) -> list[Tensor]:
        """The gradients that an action's step will use."""
        optimizer = self.of(action)
        groups = optimizer.param_groups if optimizer else []
        return [p.grad for group in groups for p in group["params"] if p.grad is not None]

    def step(self, action: Action) -> None:
        """Step, and drop the gradients. A late action steps with what was kept of its batch."""
        optimizer = self.of(action)
        if optimizer is None:
            return
        with self._as_kept(optimizer, late=action.late):
            optimizer.step()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def keep(self, late: Iterable[Action]) -> None:
        """Keep the hyperparameters of now for late steps."""
        steps = [optimizer for action in late if action.op in (Op.S, Op.H) and (optimizer := self.of(action))]
        self._rates = {optimizer: [_hyperparameters(group) for group in optimizer.param_groups] for optimizer in steps}

    @contextmanager
    def _as_kept(self, optimizer: Optimizer, *, late: bool) -> Iterator[None]:
        if not late:
            yield
            return
        changed = []  # since the batch; what the optimizer itself counts there goes on
        for group, then in zip(optimizer.param_groups, self._rates.pop(optimizer), strict=True):
            now = _hyperparameters(group)
            changed.append({key: now[key] for key in then if not same(then[key], now[key])})
            group.update(then)
        yield
        for group, now in zip(optimizer.param_groups, changed, strict=True):
            group.update(now)


def same(one: Any, other: Any) -> bool:
    """Whether two values of a hyperparameter, tensors or not, are equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.clone() if isinstance(value, Tensor) else value for key, value in group.items() if key != "params"
    }
