"""What forwards change in modules: kept before a step, and put back if the step fails."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

from localprop.network.attributes import list_attributes
from localprop.network.copied_values import (
    GENERATORS,
    copy_value,
    find_objects,
    is_writable,
    write_generator,
)

# Larger tensors are copied only if they were written into before: few masks, tables and frozen
# weights ever are.
_LARGE = 2**16
_PLAIN = (type(None), bool, int, float, str)  # most attributes


class _Written(NamedTuple):
    """Something that a forward may write into.

    Attributes:
        mapping: the dict that holds it.
        key: its name there.
        value: the thing itself.
        copy: a copy; of a generator its state; None of a large tensor that has never changed.
        data: of a tensor, one with the same memory: a forward may exchange its `.data`.
        version: of a tensor, its version counter.
    """

    mapping: dict[str, Any]
    key: str
    value: Any
    copy: Any
    data: Any = None
    version: int = 0


class ModuleState:
    """What forwards may change: buffers and other attributes of modules, frozen parameters, and the
    generators of Python and numpy.

    Of torch's own modules only buffers and parameters are kept: nothing else of them changes.

    Args:
        roots: modules.
        others: objects whose attributes change, too.

    Example:
        >>> norm = nn.BatchNorm1d(3)
        >>> state = ModuleState([norm])
        >>> state.keep()
        >>> _ = norm(torch.randn(4, 3))
        >>> state.put_back()
        []
        >>> int(norm.num_batches_tracked)
        0
    """

    def __init__(self, roots: Iterable[nn.Module], others: Iterable[object] = ()) -> None:
        modules = dict.fromkeys(module for root in roots for module in root.modules())
        own = [each for each in modules if not type(each).__module__.startswith("torch.")]
        self._own: list[object] = [*own, *others]
        self._modules = [*modules]
        self._values: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._written: list[_Written] = []
        self._versions: dict[str, int] = {}  # of large tensors, when they were last kept
        self._changing: set[str] = set()  # large tensors that have changed
        self._draws: Any = None

    def keep(self) -> None:
        """Copy what a forward may write into."""
        self._values, self._written = [], []
        memo = dict[int, Any]()
        # A module's attributes are a dict.
        waiting = [*map(vars, self._own)]
        for module in self._modules:
            waiting += [module._buffers, module._parameters]
        for number, mapping in enumerate(waiting):
            self._values.append((mapping, dict(mapping)))
            for key, value in list_attributes(mapping):
                if isinstance(value, Tensor):
                    if value.grad_fn is None:  # else it is a result that the module has kept
                        self._keep_tensor(mapping, key, value, f"{number} {key}")
                elif type(value) not in _PLAIN:
                    if is_writable(value):
                        copy = copy_value(value, memo, is_deep=True).value
                        self._written.append(_Written(mapping, key, value, copy))
                    found = map(vars, find_objects(value))
                    waiting += [each for each in found if not any(each is i for i in waiting)]
        self._draws = random.getstate(), numpy.random.get_state()

    def list_copies(self) -> Iterator[Tensor]:
        """The tensors that are kept."""
        return (each.copy for each in self._written if isinstance(each.copy, Tensor))

    @torch.no_grad()
    def put_back(self) -> list[str]:
        """Make all as it was.

        Returns:
            The names of large tensors that were written into for the first time, and stay so.
        """
        for mapping, before in self._values:
            mapping.clear()
            mapping.update(before)
        changed = []
        for mapping, key, value, copy, data, version in self._written:
            if isinstance(value, GENERATORS):
                write_generator(value, copy)
            elif not isinstance(value, Tensor):
                mapping[key] = copy
            else:
                if value.untyped_storage()._cdata != data.untyped_storage()._cdata:
                    value.data = data
                if copy is not None:
                    value.copy_(copy)
                elif value._version != version:
                    changed.append(key)
        python, of_numpy = self._draws
        random.setstate(python)
        numpy.random.set_state(of_numpy)
        self.forget()
        return changed

    def forget(self) -> None:
        """Drop the copies."""
        self._values, self._written, self._draws = [], [], None

    def _keep_tensor(self, mapping: dict[str, Any], key: str, tensor: Tensor, place: str) -> None:
        data, version = tensor.detach(), tensor._version
        copy = None
        if tensor.numel() > _LARGE:
            if self._versions.get(place, version) != version:
                self._changing.add(place)
            self._versions[place] = version
        if tensor.numel() <= _LARGE or place in self._changing:
            copy = data.clone()
        self._written.append(_Written(mapping, key, tensor, copy, data, version))
