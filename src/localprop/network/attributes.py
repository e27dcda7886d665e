"""Attributes of modules: what a call changes in them, and how to set it back."""

from __future__ import annotations

import operator
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

# What torch itself keeps in a module's attributes: hooks, and the dicts of parameters and buffers,
# which are looked at one by one.
_OWN = frozenset(vars(nn.Module())) - {"training"}
_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict, Counter)
_GENERATORS = (torch.Generator, random.Random, numpy.random.RandomState, numpy.random.Generator)
_ABSENT = object()


class Kept(NamedTuple):
    """An attribute as it was.

    Attributes:
        mapping: the dict that holds it.
        key: its name.
        value: what it was.
        version: of a tensor, its version counter.
        copy: of what can be written into, a copy; None where there is none.
    """

    mapping: dict[str, Any]
    key: str
    value: Any
    version: int
    copy: Any

    def has_changed(self) -> bool:
        """Whether the attribute is another one now, or has been written into."""
        now = self.mapping.get(self.key, _ABSENT)
        if now is not self.value:
            return True
        if isinstance(now, Tensor):
            if now._version != self.version:
                return True
            # What is written through `.data` counts no version; a fake has no values.
            return self.copy is not None and not _is_fake(now) and not _equal(now, self.copy)
        return self.copy is not None and not _holds_the_same(now, self.copy)

    def set_back(self) -> Kept:
        """Make the attribute what it was, and return what it is now."""
        now = self.mapping.get(self.key, _ABSENT)
        old = self.value if self.copy is None else self.copy
        if isinstance(self.value, _GENERATORS):
            state = _read_generator(self.value)
            _write_generator(self.value, self.copy)
            return self._replace(copy=state)
        if old is _ABSENT:
            del self.mapping[self.key]
        else:
            self.mapping[self.key] = old
        return Kept(self.mapping, self.key, now, 0, None)


class Snapshot(NamedTuple):
    """Attributes as they were.

    Attributes:
        values: for each dict that holds some, a copy.
        kept: those that can be written into.
    """

    values: list[dict[str, Any]]
    kept: list[Kept]


class AttributeWatch:
    """Watches what calls of a module change in the attributes of it and of its submodules.

    Tensors are copied before the first call. Later on only those are which have changed, or whose
    neighbours in one module have, as the statistics of a norm do together; the others' versions are
    compared.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._holders = [_Holder(mapping) for mapping in list_mappings(module.modules())]
        self._changing: set[int] | None = None

    def read(self) -> Snapshot:
        """The attributes now."""
        values, kept = list[dict[str, Any]](), list[Kept]()
        for holder in self._holders:
            values.append(holder.refresh())
            copied = self._changing is None or id(holder.mapping) in self._changing
            kept += [_keep(holder.mapping, key, copied) for key in holder.writable]
        return Snapshot(values, kept)

    def find_changes(self, before: Snapshot) -> list[Kept]:
        """What a call has changed, as it was before.

        Raises:
            LookupError: something has, and what it was is not known. The next call's will be.
        """
        first, changing = self._changing is None, self._changing or set()
        changed = [each for each in before.kept if each.has_changed()]
        together = {id(each.mapping) for each in changed if isinstance(each.value, Tensor)}
        lost = not first and any(
            isinstance(each.value, Tensor) and each.copy is None and not each.value.grad_fn
            for each in changed
        )
        self._changing = changing | together
        if lost:
            raise LookupError
        replaced = [
            each
            for holder, values in zip(self._holders, before.values, strict=True)
            for each in holder.find_replaced(values)
        ]
        others = [
            each
            for each in before.kept
            if id(each.mapping) in together and isinstance(each.value, Tensor)
        ]
        # Those with copies come last, and so take the places of those without.
        return [*{(id(e.mapping), e.key): e for e in (*replaced, *changed, *others)}.values()]


class _Holder:
    """A dict that holds attributes; most of them never change.

    Attributes:
        mapping: the dict.
        writable: the keys of what can be written into.
    """

    def __init__(self, mapping: dict[str, Any]) -> None:
        self.mapping = mapping
        self.writable: list[str] = []
        self._values: dict[str, Any] = {}

    def refresh(self) -> dict[str, Any]:
        """A copy of the dict, the last one where it still holds the same."""
        if not _are_same(self._values, self.mapping):
            self._values = dict(self.mapping)
            self.writable = [key for key, value in _list_attributes(self.mapping) if _holds(value)]
        return self._values

    def find_replaced(self, values: dict[str, Any]) -> Iterator[Kept]:
        """What has been replaced, added or deleted since, as it was."""
        if not _are_same(values, self.mapping):
            before, now = dict(_list_attributes(values)), dict(_list_attributes(self.mapping))
            for key in {**before, **now}:
                old = before.get(key, _ABSENT)
                if now.get(key, _ABSENT) is not old:
                    yield Kept(self.mapping, key, old, 0, None)


def list_mappings(modules: Iterable[nn.Module]) -> Iterator[dict[str, Any]]:
    """The dicts in which modules hold attributes, buffers and parameters."""
    for module in modules:
        yield from (vars(module), module._buffers, module._parameters)


def read_attributes(mappings: Iterable[dict[str, Any]]) -> list[Kept]:
    """All attributes, without copies of tensors, but also those of objects that they hold."""
    waiting, seen, kept = list(mappings), set[int](), list[Kept]()
    while waiting:
        mapping = waiting.pop()
        if id(mapping) in seen:
            continue
        seen.add(id(mapping))
        own = [_keep(mapping, key, copied=False) for key, _ in _list_attributes(mapping)]
        kept += own
        waiting += [vars(held) for each in own for held in find_objects(each.value)]
    return kept


def find_objects(value: Any) -> list[object]:
    """The objects of somebody's own class among a value and what containers in it hold."""
    if type(value) in (*_CONTAINERS, tuple):
        held = value.values() if isinstance(value, dict) else value
        return [found for each in held for found in find_objects(each)]
    return [value] if _is_object(value) else []


@contextmanager
def put_right(changes: Iterable[Kept]) -> Iterator[None]:
    """Within the context, attributes are as they were; then as they are now."""
    now = [each.set_back() for each in changes]
    try:
        yield
    finally:
        for each in reversed(now):
            each.set_back()


def _list_attributes(mapping: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        # What is trained is changed by an optimizer, and by no call.
        is_trained = isinstance(value, Tensor) and value.requires_grad and value.is_leaf
        if key not in _OWN and not is_trained:
            yield key, value


def _are_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two dicts hold the same objects, in one order."""
    return len(one) == len(other) and all(map(operator.is_, one.values(), other.values()))


def _holds(value: object) -> bool:
    """Whether something can be written into, as far as we know how to copy it."""
    return isinstance(value, (Tensor, *_GENERATORS)) or type(value) in _CONTAINERS


def _keep(mapping: dict[str, Any], key: str, copied: bool) -> Kept:
    value = mapping[key]
    if isinstance(value, _GENERATORS):
        return Kept(mapping, key, value, 0, _read_generator(value))
    if not isinstance(value, Tensor):
        return Kept(mapping, key, value, 0, _copy_container(value))
    is_copied = copied and value.grad_fn is None
    return Kept(mapping, key, value, value._version, _copy_tensor(value) if is_copied else None)


def _copy_tensor(tensor: Tensor) -> Tensor:
    own = tensor.detach().clone()
    # A module's dict of parameters holds parameters only.
    return nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own


def _copy_container(value: Any) -> Any:
    """A copy of a container and of those in it, down to tensors."""
    if isinstance(value, Tensor):
        return value if value.requires_grad else value.detach().clone()
    if type(value) not in _CONTAINERS:
        return value
    copied = copy(value)  # with a deque's length, and with what a defaultdict begins with
    if isinstance(value, dict):
        copied.update((key, _copy_container(each)) for key, each in value.items())
    elif not isinstance(value, set):
        copied.clear()
        copied.extend(map(_copy_container, value))
    return copied


def _holds_the_same(value: Any, copied: Any) -> bool:
    if value is copied:
        return True
    if isinstance(value, _GENERATORS):
        return _is_same_state(_read_generator(value), copied)
    if isinstance(value, Tensor):
        return value is copied or _is_fake(value) or _equal(value, copied)
    if type(value) not in _CONTAINERS:
        return value is copied
    if len(value) != len(copied):
        return False
    if isinstance(value, dict):
        return value.keys() == copied.keys() and all(
            _holds_the_same(each, copied[key]) for key, each in value.items()
        )
    if isinstance(value, set):
        return bool(value == copied)
    return all(map(_holds_the_same, value, copied))


def _is_same_state(one: Any, other: Any) -> bool:
    """Whether two states of a generator are the same."""
    if isinstance(one, Tensor):
        return _is_fake(one) or torch.equal(one, other)
    if isinstance(one, dict):
        return all(_is_same_state(each, other[key]) for key, each in one.items())
    if isinstance(one, tuple):
        return all(map(_is_same_state, one, other))
    return bool(numpy.all(one == other))


def _equal(one: Tensor, other: Any) -> bool:
    same = isinstance(other, Tensor) and one.shape == other.shape and one.dtype == other.dtype
    return same and torch.equal(one, other)


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) or tensor.is_meta


def _is_object(value: object) -> bool:
    """Whether something is an object of somebody's own class, which holds attributes."""
    if isinstance(value, (Tensor, nn.Module, type, *_GENERATORS)):
        return False
    inside = type(value).__module__.partition(".")[0]
    return type(getattr(value, "__dict__", None)) is dict and inside not in ("torch", "builtins")


def _read_generator(generator: Any) -> Any:
    if isinstance(generator, (torch.Generator, numpy.random.RandomState)):
        return generator.get_state()
    if isinstance(generator, numpy.random.Generator):
        return generator.bit_generator.state
    return generator.getstate()


def _write_generator(generator: Any, state: Any) -> None:
    if isinstance(generator, (torch.Generator, numpy.random.RandomState)):
        generator.set_state(state)
    elif isinstance(generator, numpy.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.setstate(state)
