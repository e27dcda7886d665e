"""The optimizers of a step: one for each segment and objective, with the learning rates of the batch that they step for."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localprop.errors import BadInput, check
from localprop.schedule.schedule import REDUCES, Action, Op


class Optimizers:
    """Steps the optimizer of an action; one that is missing is stepped by somebody else.

    Args:
        made: for each action S or H its optimizer.
    """

    def __init__(self, made: Mapping[Action, Optimizer]) -> None:
        self.by_action = made
        self._rates: dict[Optimizer, list[dict[str, Any]]] = {}

    def all(self) -> list[Optimizer]:
        """All of them."""
        return [*self.by_action.values()]

    def of(self, action: Action) -> Optimizer | None:
        """The optimizer that an action, or the step that it prepares, is for."""
        return self.by_action.get(
            Action(REDUCES.get(action.op, action.op), action.segment, action.flow)
        )

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
        with self._as_kept(optimizer, deferred=action.deferred):
            optimizer.step()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def keep_hyperparameters(self, deferred: Iterable[Action]) -> None:
        """Keep the hyperparameters of now for late steps."""
        steps = [
            optimizer
            for action in deferred
            if action.op in (Op.S, Op.H) and (optimizer := self.of(action))
        ]
        self._rates = {
            optimizer: [_hyperparameters(group) for group in optimizer.param_groups]
            for optimizer in steps
        }

    @contextmanager
    def _as_kept(self, optimizer: Optimizer, *, deferred: bool) -> Iterator[None]:
        if not deferred:
            yield
            return
        changed = []  # since the batch; what the optimizer itself counts there goes on
        for group, then in zip(optimizer.param_groups, self._rates.pop(optimizer), strict=True):
            now = _hyperparameters(group)
            changed.append({key: now[key] for key in then if not values_equal(then[key], now[key])})
            group.update(then)
        yield
        for group, now in zip(optimizer.param_groups, changed, strict=True):
            group.update(now)


def values_equal(one: Any, other: Any) -> bool:
    """Whether two values of a hyperparameter, tensors or not, are equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.clone() if isinstance(value, Tensor) else value
        for key, value in group.items()
        if key != "params"
    }


# What optimizers have adopted; no field of theirs, since they would save it as a hyperparameter.
_ADOPTED: WeakKeyDictionary[Optimizer, set[int]] = WeakKeyDictionary()


_LOG = logging.getLogger("localprop")


def extend_optimizer(
    optimizer: Optimizer, model: nn.Module, trained: Iterable[nn.Parameter]
) -> None:
    """Give an existing optimizer what was born later: heads and encoders, as one more group, which replaces an older one."""
    own = {id(p) for p in model.parameters()}
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [
        name for name, p in model.named_parameters() if p.requires_grad and id(p) not in known
    ]
    check(
        [
            f"The optimizer lacks parameters of the model ({', '.join(missing[:5])}): build it from model.parameters()."
        ]
        if missing
        else []
    )
    older = _ADOPTED.pop(optimizer, set())
    for group in [
        group for group in optimizer.param_groups if older & set(map(id, group["params"]))
    ]:
        optimizer.param_groups.remove(group)
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)
    born_later = [p for p in trained if id(p) not in own]
    if born_later:
        optimizer.add_param_group({"params": born_later})
        _ADOPTED[optimizer] = set(map(id, born_later))
        count = sum(parameter.numel() for parameter in born_later)
        _LOG.info("the optimizer has gained a group of %d parameters, of heads and encoders", count)


def check_optimizer(made: Any, parameters: list[nn.Parameter]) -> Optimizer:
    """What the factory made, if it is an optimizer of all the parameters that it was given."""
    hint = "write optimizer=lambda params: torch.optim.SGD(params, lr=0.1)."
    if not isinstance(made, Optimizer):
        raise BadInput(
            [
                f"The optimizer factory returned a {type(made).__name__}, but must return an optimizer: {hint}"
            ]
        )
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise BadInput(
            [
                f"{type(made).__name__} runs the model again in its step, which cannot be cut: use another optimizer."
            ]
        )
    owned = {id(p) for group in made.param_groups for p in group["params"]}
    wanted = {id(p) for p in parameters}
    if owned != wanted:
        raise BadInput(
            [
                f"The optimizer factory was given {len(wanted)} parameters, but its optimizer owns {len(owned & wanted)} of "
                f"them and {len(owned - wanted)} others: it must own just those it is given; {hint}"
            ]
        )
    return made
