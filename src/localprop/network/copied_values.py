"""Copies of what can be written into: tensors, arrays, containers of them, random generators."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from copy import copy
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

CONTAINERS = (list, dict, set, deque, bytearray)
GENERATORS = (torch.Generator, random.Random, numpy.random.RandomState, numpy.random.Generator)
# Longer containers are copied only if they are known to change.
_LONG = 1000


class Copy(NamedTuple):
    """A value as it was.

    Attributes:
        value: a copy of it; of a generator its state.
        versions: the tensors in it, each with its version counter.
        lengths: long containers in it that are no copies, each with its length.
        is_deep: whether tensors and long containers are copies, too.
    """

    value: Any
    versions: list[tuple[Tensor, int]]
    lengths: list[tuple[Any, int]]
    is_deep: bool

    def is_whole(self) -> bool:
        """Whether it still is what the value was: nobody has written into what is no copy."""
        return self.is_deep or not self._is_written_into()

    def equals(self, now: Any) -> bool:
        """Whether the value, which may have been written into, is still the same."""
        if isinstance(now, GENERATORS):
            return _equals(read_generator(now), self.value, set())
        # What is written through `.data` counts no version; a fake has no values.
        by_version = not self.is_deep or any(is_fake(tensor) for tensor, _ in self.versions)
        if by_version and self._is_written_into():
            return False
        return _equals(now, self.value, set())

    def _is_written_into(self) -> bool:
        return any(tensor._version != version for tensor, version in self.versions) or any(
            len(container) != length for container, length in self.lengths
        )


def copy_value(value: Any, memo: dict[int, Any], *, is_deep: bool) -> Copy:
    """Copy a value.

    Args:
        value: the value.
        memo: by id, the copies so far: what two attributes share, their copies share.
        is_deep: copy tensors and long containers, too.
    """
    copied = Copy(None, [], [], is_deep)
    own = read_generator(value) if isinstance(value, GENERATORS) else _copy(value, memo, copied)
    return copied._replace(value=own)


def is_writable(value: object) -> bool:
    """Whether something can be written into, as far as we know how to copy it."""
    if isinstance(value, tuple):
        return any(map(is_writable, value))
    return isinstance(value, (Tensor, numpy.ndarray, *CONTAINERS, *GENERATORS))


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has no values."""
    return isinstance(tensor, FakeTensor) or tensor.is_meta


def find_objects(value: Any, seen: set[int] | None = None) -> Iterator[object]:
    """The objects of somebody's own class among a value and what containers in it hold."""
    seen = set() if seen is None else seen
    if isinstance(value, (*CONTAINERS, tuple)) and id(value) not in seen:
        seen.add(id(value))
        for each in value.values() if isinstance(value, dict) else value:
            yield from find_objects(each, seen)
    elif _is_object(value):
        yield value


def _copy(value: Any, memo: dict[int, Any], copied: Copy) -> Any:
    if isinstance(value, Tensor):
        copied.versions.append((value, value._version))
        is_result = value.requires_grad or value.grad_fn is not None
        if is_result or not copied.is_deep:
            return value
    elif isinstance(value, tuple):
        if not is_writable(value):
            return value
        parts = [_copy(each, memo, copied) for each in value]
        return type(value)._make(parts) if hasattr(value, "_make") else tuple(parts)
    elif isinstance(value, CONTAINERS):
        if not copied.is_deep and len(value) > _LONG:
            copied.lengths.append((value, len(value)))
            return value
    elif not isinstance(value, numpy.ndarray):
        return value
    if id(value) not in memo:
        memo[id(value)] = own = _copy_tensor(value) if isinstance(value, Tensor) else copy(value)
        # The methods of the built-in classes: `Counter.update` would count.
        if isinstance(own, dict):
            for key, each in value.items():
                dict.__setitem__(own, key, _copy(each, memo, copied))
        elif isinstance(own, (list, deque)):
            for i, each in enumerate(value):
                own[i] = _copy(each, memo, copied)
    return memo[id(value)]


def _copy_tensor(tensor: Tensor) -> Tensor:
    own = tensor.detach().clone()
    # A module's dict of parameters holds parameters only.
    return nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own


def _equals(value: Any, copied: Any, seen: set[int]) -> bool:
    if value is copied or id(value) in seen:
        return True
    seen.add(id(value))
    if isinstance(value, Tensor):
        return isinstance(copied, Tensor) and (is_fake(value) or _are_equal(value, copied))
    if isinstance(value, numpy.ndarray):
        return isinstance(copied, numpy.ndarray) and numpy.array_equal(value, copied, True)
    if isinstance(value, dict):
        return value.keys() == copied.keys() and all(
            _equals(each, copied[key], seen) for key, each in value.items()
        )
    if isinstance(value, (set, bytearray)):
        return bool(value == copied)
    if isinstance(value, (list, deque, tuple)):
        pairs = zip(value, copied, strict=False)
        return len(value) == len(copied) and all(_equals(one, two, seen) for one, two in pairs)
    return isinstance(value, (int, float, str)) and bool(value == copied)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    same = one.shape == other.shape and one.dtype == other.dtype
    return same and torch.equal(one, other)


def _is_object(value: object) -> bool:
    """Whether something is an object of somebody's own class, which holds attributes."""
    if isinstance(value, (Tensor, nn.Module, type, *GENERATORS)):
        return False
    inside = type(value).__module__.partition(".")[0]
    return type(getattr(value, "__dict__", None)) is dict and inside not in ("torch", "builtins")


def read_generator(generator: Any) -> Any:
    """The state of a random generator of torch, Python or numpy."""
    if isinstance(generator, (torch.Generator, numpy.random.RandomState)):
        return generator.get_state()
    if isinstance(generator, numpy.random.Generator):
        return generator.bit_generator.state
    return generator.getstate()


def write_generator(generator: Any, state: Any) -> None:
    """Put a random generator into a state."""
    if isinstance(generator, (torch.Generator, numpy.random.RandomState)):
        generator.set_state(state)
    elif isinstance(generator, numpy.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.setstate(state)
