"""Attributes of modules: what a call changes in them, and how to set it back."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from localprop.network.copied_values import (
    GENERATORS,
    Copy,
    copy_value,
    find_objects,
    is_fake,
    is_writable,
    read_generator,
    write_generator,
)

# What torch itself keeps in a module's attributes: hooks, and the dicts of parameters and buffers,
# which are looked at one by one.
_OWN = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = sorted(key for key in _OWN if key.endswith("_hooks"))
_ABSENT = object()
# On fakes, the elements of a buffer that is taken for the statistics of a norm.
_STATISTICS = 2**16


class Kept(NamedTuple):
    """An attribute as it was.

    Attributes:
        mapping: the dict that holds it.
        key: its name.
        value: what it was.
        copy: of what can be written into, a copy.
    """

    mapping: dict[str, Any]
    key: str
    value: Any
    copy: Copy | None = None

    @property
    def place(self) -> tuple[int, str]:
        """Where it stands."""
        return id(self.mapping), self.key

    def has_changed(self) -> bool:
        """Whether the attribute is another one now, or has been written into."""
        now = self.mapping.get(self.key, _ABSENT)
        return now is not self.value or not (self.copy is None or self.copy.equals(now))

    def list_tensors(self) -> Iterator[Tensor]:
        """The tensors that are kept as copies."""
        if self.copy is not None and isinstance(self.copy.value, Tensor):
            yield self.copy.value


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

    Tensors are copied before the first call. Later on only those are which have changed; of the
    others versions are compared.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._holders = [_Holder(mapping) for mapping in list_mappings(module.modules())]
        self._modules = list(module.modules())
        self._is_first = True
        self._changing = set[tuple[int, str]]()

    def read(self) -> Snapshot:
        """The attributes now."""
        values, kept, memo = list[dict[str, Any]](), list[Kept](), dict[int, Any]()
        for holder in self._holders:
            values.append(holder.refresh())
            mapping = holder.mapping
            for key in holder.writable:
                is_deep = self._is_first or (id(mapping), key) in self._changing
                own = copy_value(mapping[key], memo, is_deep=is_deep)
                kept.append(Kept(mapping, key, mapping[key], own))
        return Snapshot(values, kept)

    def look(self) -> Snapshot:
        """The attributes now, without copies of tensors; nothing of it is remembered."""
        mappings, memo = [holder.mapping for holder in self._holders], dict[int, Any]()
        kept = (
            Kept(mapping, key, value, copy_value(value, memo, is_deep=False))
            for mapping in mappings
            for key, value in list_attributes(mapping)
        )
        return Snapshot([*map(dict, mappings)], [*kept])

    def has_changed(self, before: Snapshot) -> bool:
        """Whether anything has, since this was read."""
        pairs = zip(self._holders, before.values, strict=True)
        replaced = (each for holder, values in pairs for each in holder.find_replaced(values))
        return any(each.has_changed() for each in before.kept) or any(replaced)

    def count_hooks(self) -> tuple[int, ...]:
        """How many hooks the modules have, by kind."""
        return tuple(len(vars(each)[kind]) for each in self._modules for kind in _HOOKS)

    def find_changes(self, before: Snapshot) -> list[Kept]:
        """What a call has changed, as it was before.

        Raises:
            LookupError: something has, and what it was is not known. The next call's will be.
        """
        changed = [each for each in before.kept if each.has_changed()]
        changed += _find_statistics(before.kept, changed)
        self._is_first = False
        self._changing.update(each.place for each in changed)
        if not all(each.copy.is_whole() for each in changed if each.copy is not None):
            raise LookupError
        replaced = [
            each
            for holder, values in zip(self._holders, before.values, strict=True)
            for each in holder.find_replaced(values)
        ]
        # Those with copies come last, and so take the places of those without.
        return [*{each.place: each for each in (*replaced, *changed)}.values()]


def _find_statistics(kept: list[Kept], changed: list[Kept]) -> list[Kept]:
    """On fakes, the statistics of norms that count their batches: their change cannot be seen."""
    counting = {id(each.mapping) for each in changed if isinstance(each.value, Tensor)}
    return [
        each
        for each in kept
        if id(each.mapping) in counting
        and isinstance(each.value, Tensor)
        and is_fake(each.value)
        and each.value.is_floating_point()
        and each.value.numel() <= _STATISTICS
    ]


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
            attributes = list_attributes(self.mapping)
            self.writable = [key for key, value in attributes if is_writable(value)]
        return self._values

    def find_replaced(self, values: dict[str, Any]) -> Iterator[Kept]:
        """What has been replaced, added or deleted since, as it was."""
        if not _are_same(values, self.mapping):
            before, now = dict(list_attributes(values)), dict(list_attributes(self.mapping))
            for key in {**before, **now}:
                old = before.get(key, _ABSENT)
                if now.get(key, _ABSENT) is not old:
                    yield Kept(self.mapping, key, old)


def list_mappings(modules: Iterable[nn.Module]) -> Iterator[dict[str, Any]]:
    """The dicts in which modules hold attributes, buffers and parameters."""
    for module in modules:
        yield from (vars(module), module._buffers, module._parameters)


def read_attributes(mappings: Iterable[dict[str, Any]]) -> list[Kept]:
    """All attributes, without copies of tensors, but also those of objects that they hold."""
    waiting, seen, kept, memo = list(mappings), set[int](), list[Kept](), dict[int, Any]()
    while waiting:
        mapping = waiting.pop()
        if id(mapping) in seen:
            continue
        seen.add(id(mapping))
        for key, value in list_attributes(mapping):
            kept.append(Kept(mapping, key, value, copy_value(value, memo, is_deep=False)))
            waiting += [vars(held) for held in find_objects(value)]
    return kept


def copy_kept(changes: Iterable[Kept]) -> list[Kept]:
    """Copies of what was kept, for a call that will need it once more: it writes into the first."""
    memo = dict[int, Any]()
    return [
        kept
        if kept.copy is None or isinstance(kept.value, GENERATORS)
        else kept._replace(copy=copy_value(kept.copy.value, memo, is_deep=kept.copy.is_deep))
        for kept in changes
    ]


@contextmanager
def put_right(changes: Iterable[Kept]) -> Iterator[None]:
    """Within the context, attributes are as they were; then as they are now."""
    now = [_set_back(each) for each in changes]
    try:
        yield
    finally:
        for each in reversed(now):
            _set_back(each)


def _set_back(kept: Kept) -> Kept:
    """Make an attribute what it was, and return what it is now."""
    now = kept.mapping.get(kept.key, _ABSENT)
    if isinstance(kept.value, GENERATORS) and kept.copy is not None:
        state = kept.copy._replace(value=read_generator(kept.value))
        write_generator(kept.value, kept.copy.value)
        return kept._replace(copy=state)
    if kept.value is _ABSENT:
        kept.mapping.pop(kept.key, None)
    else:
        kept.mapping[kept.key] = kept.value if kept.copy is None else kept.copy.value
    return Kept(kept.mapping, kept.key, now)


def list_attributes(mapping: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What calls may change: neither what torch keeps in a module, nor what an optimizer trains."""
    for key, value in mapping.items():
        # What is trained is changed by an optimizer, and by no call.
        is_trained = isinstance(value, Tensor) and value.requires_grad and value.is_leaf
        if key not in _OWN and not is_trained:
            yield key, value


def _are_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two dicts hold the same objects, in one order."""
    return len(one) == len(other) and all(map(operator.is_, one.values(), other.values()))
