"""Fake tensors in the places of real ones, for a while.

A prediction runs the user's own model and optimizers. A deep copy of them would be safer if it were
possible, but many models cannot be copied: they hold locks, files, threads or features of the last
forward, or functions that refer to the original, as a patched `forward` and many hooks do. So
every tensor is replaced where it is held, and everything is put back as it was::

    weight ─┐                                 ┌─ fake weight
    list ───┼── the user's own modules ◄──────┼─ fake features      while the prediction runs
    state ──┘                                 └─ fake state

"""

from __future__ import annotations

import operator
import random
import sys
from argparse import Namespace
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from localprop.network.copied_values import GENERATORS, read_generator, write_generator

_S = TypeVar("_S")
_HOLDERS = (dict, list, deque, set, CellType)
_LINKS = (FunctionType, MethodType, partial)
# Other objects of the standard library are left alone. Threads, queues, files and loggers live on
# while a prediction runs, and must not go back to an earlier state.
_PLAIN = (SimpleNamespace, Namespace)


class StandIns:
    """Fake tensors that stand in the places of others.

    Args:
        make: makes the stand-in of a tensor. It is called once for each, so that what shares a
            tensor shares its stand-in.
        left: objects that nobody looks into.

    Example:
        >>> import torch
        >>> from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
        >>> layer, mode = torch.nn.Linear(2, 2), FakeTensorMode()
        >>> with StandIns(mode.from_tensor).placed(layer):
        ...     isinstance(layer.weight, FakeTensor)
        True
        >>> isinstance(layer.weight, FakeTensor)
        False
    """

    def __init__(self, make: Callable[[Tensor], Tensor], left: Iterable[object] = ()) -> None:
        self._make = make
        self._made: dict[int, Tensor] = {}
        # By id. The objects are kept, so that no other one can get the id of one that has gone.
        self._known: dict[int, object] = {id(each): each for each in left}
        self._waiting: list[Any] = []
        self._undo = ExitStack()  # goes on where one of its calls fails

    def of(self, tensor: Tensor) -> Tensor:
        """The stand-in of a tensor; a fake stands for itself."""
        if isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) not in self._made:
            self._known[id(tensor)] = tensor
            with _disable_current_modes():
                self._made[id(tensor)] = self._make(tensor)
        return self._made[id(tensor)]

    @contextmanager
    def placed(self, *roots: object) -> Iterator[None]:
        """Within the context stand-ins are in all places that can be reached from the roots.

        These are attributes of modules, optimizers and other objects, containers in them, and what
        functions among them refer to. At the end, and after a failure, all these hold again what
        they held before, even where something else was written to them meanwhile. Random
        generators, the global ones and those that are reached, get their states back.
        """
        with self._undo:
            self._keep_state(torch.get_rng_state, torch.set_rng_state)
            self._keep_state(random.getstate, random.setstate)
            self._keep_state(np.random.get_state, np.random.set_state)
            self._replace(roots)
            while self._waiting:  # a loop, since a model may be nested deeper than Python's stack
                self._enter(self._waiting.pop())
            yield

    def _replace(self, value: Any) -> Any:
        """What takes the place of a value; a value that may hold tensors itself waits its turn."""
        if isinstance(value, Tensor):
            return self.of(value)
        if isinstance(value, tuple):
            return self._replace_tuple(value)
        if id(value) not in self._known and _may_hold(value):
            self._known[id(value)] = value
            self._waiting.append(value)
        return value

    def _replace_tuple(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        entries = [self._replace(entry) for entry in value]
        if _are_same(entries, value):
            return value
        named = hasattr(value, "_make")  # a named tuple
        return type(value)(*entries) if named else type(value)(entries)

    def _enter(self, value: Any) -> None:
        if isinstance(value, _HOLDERS):
            before = _read(value)
            self._undo.callback(_put_back, value, before)
            after = [self._replace(entry) for entry in before]
            if not _are_same(after, before):
                _write(value, after)
        elif isinstance(value, FunctionType):
            self._replace(value.__closure__ or ())
        elif isinstance(value, MethodType):
            self._replace((value.__self__, value.__func__))
        elif isinstance(value, partial):
            self._replace((value.func, value.args, value.keywords))
        elif isinstance(value, GENERATORS):
            self._keep_state(partial(read_generator, value), partial(write_generator, value))
        else:
            self._replace(vars(value))

    def _keep_state(self, get: Callable[[], _S], put: Callable[[_S], object]) -> None:
        self._undo.callback(put, get())


def _may_hold(value: object) -> bool:
    if isinstance(value, (*_HOLDERS, *_LINKS, *GENERATORS, *_PLAIN)):
        return True
    if isinstance(value, ModuleType) or type(getattr(value, "__dict__", None)) is not dict:
        return False
    return type(value).__module__.partition(".")[0] not in sys.stdlib_module_names


def _read(holder: Any) -> list[Any]:
    """What a holder holds, in a row; keys and values of a dict in turn."""
    if isinstance(holder, dict):
        return [each for entry in _kind_of(holder).items(holder) for each in entry]
    if isinstance(holder, CellType):
        try:
            return [holder.cell_contents]
        except ValueError:  # a variable that has no value yet
            return []
    return list(holder)


def _write(holder: Any, entries: list[Any]) -> None:
    """The reverse of `_read`."""
    if isinstance(holder, dict):
        kind = _kind_of(holder)
        kind.clear(holder)
        kind.update(holder, zip(entries[::2], entries[1::2], strict=True))
    elif isinstance(holder, CellType):
        if entries:
            holder.cell_contents = entries[0]
        else:
            del holder.cell_contents
    elif isinstance(holder, list):
        holder[:] = entries
    else:
        holder.clear()
        holder.extend(entries) if isinstance(holder, deque) else holder.update(entries)


def _put_back(holder: Any, before: list[Any]) -> None:
    # What has not changed is not touched: somebody else may be looking at it.
    if not _are_same(_read(holder), before):
        _write(holder, before)


def _kind_of(holder: dict[Any, Any]) -> type[dict[Any, Any]]:
    # Methods that a subclass overrides may do more than read and write.
    return OrderedDict if isinstance(holder, OrderedDict) else dict


def _are_same(some: Any, others: Any) -> bool:
    """Whether two rows are of the same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))
