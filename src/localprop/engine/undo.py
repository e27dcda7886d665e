"""A step that fails is no step: copies of what it changes, by which all is put back.

Where steps are atomic, H, S and P run after all else (schedule/schedule.py), so that most failures
find the parameters as they were. The copies of parameters are made when no activation is left::

    begin                buffers and other attributes of modules
    F L B F L B F L B
    H S H S H S P        before each: the parameters and the optimizer's state that it changes
    end                  the copies are dropped; or all is put back
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localprop.engine.interrupts import uninterrupted
from localprop.engine.loss_scaler import LossScaler
from localprop.network.copied_values import copy_value, is_writable
from localprop.network.module_state import ModuleState


class _KeptOptimizer(NamedTuple):
    """The state and the groups of an optimizer, as they were."""

    optimizer: Optimizer
    state: dict[Any, Any]
    groups: list[dict[str, Any]]


class _Kept(NamedTuple):
    """What a step has changed so far, as it was."""

    tensors: list[tuple[Tensor, Tensor]]
    optimizers: list[_KeptOptimizer]
    attributes: list[tuple[object, str, Any]]


class Undo:
    """What a failed step takes back.

    Args:
        modules: those that the step trains.
        scaler: of their losses.
    """

    def __init__(self, modules: Iterable[nn.Module], scaler: LossScaler) -> None:
        self._modules = ModuleState(modules, (scaler, scaler.scaler))
        self._kept: _Kept | None = None  # outside of a step, which may also have been taken

    @contextmanager
    def on_failure(self) -> Iterator[None]:
        """Within the context, a failure puts all back that was kept; contexts may be nested."""
        if self._kept is not None:
            yield
            return
        with uninterrupted():
            self._modules.keep()
            self._kept = _Kept([], [], [])
            try:
                yield
                self._kept = None  # Here the step is taken. Whoever interrupts now comes too late.
                self._modules.forget()
            except BaseException as error:  # Ctrl-C, too
                self._put_back(error)
                raise

    def keep_attribute(self, owner: object, name: str) -> None:
        """Keep an attribute that the step is about to set."""
        if self._kept is not None:
            self._kept.attributes.append((owner, name, getattr(owner, name)))

    def keep_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Copy tensors that are about to change."""
        if self._kept is not None:
            self._kept.tensors.extend((tensor, tensor.detach().clone()) for tensor in tensors)

    def keep_optimizer(self, optimizer: Optimizer) -> None:
        """Copy what an optimizer is about to change."""
        if self._kept is None:
            return
        self.keep_tensors(p for group in optimizer.param_groups for p in group["params"])
        memo = dict[int, Any]()
        state = {p: _copy_entries(entries, memo) for p, entries in optimizer.state.items()}
        groups = [_copy_entries(group, memo) for group in optimizer.param_groups]
        self._kept.optimizers.append(_KeptOptimizer(optimizer, state, groups))

    def list_copies(self) -> Iterator[Tensor]:
        """The tensors that are kept now."""
        yield from self._modules.list_copies()
        if self._kept is not None:
            yield from (copy for _, copy in self._kept.tensors)
            for kept in self._kept.optimizers:
                for entry in (*kept.state.values(), *kept.groups):
                    yield from (each for each in entry.values() if isinstance(each, Tensor))

    @torch.no_grad()
    def _put_back(self, error: BaseException) -> None:
        kept, self._kept = self._kept, None
        if kept is None:  # the step was taken
            return
        for tensor, copy in reversed(kept.tensors):
            tensor.copy_(copy)
        for optimizer, state, groups in reversed(kept.optimizers):
            optimizer.state.clear()
            optimizer.state.update(state)
            for group, before in zip(optimizer.param_groups, groups, strict=True):
                for key in group.keys() - before.keys() - {"params"}:
                    del group[key]
                group.update(before)
                for parameter in group["params"]:
                    parameter.grad = None
        for owner, name, value in kept.attributes:
            setattr(owner, name, value)
        changed = self._modules.put_back()
        if changed:
            error.add_note(
                f"The model has written into {', '.join(changed)} for the first time, of which no "
                "copy was there: it stays changed."
            )


def _copy_entries(entries: Any, memo: dict[int, Any]) -> Any:
    """A copy of the dict of a parameter's state, or of a group's hyperparameters."""
    if not isinstance(entries, dict):
        return copy_value(entries, memo, is_deep=True).value
    return {key: _copy(value, memo) for key, value in entries.items() if key != "params"}


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (bool, int, float, type(None)) or not is_writable(value):
        return value
    return copy_value(value, memo, is_deep=True).value
