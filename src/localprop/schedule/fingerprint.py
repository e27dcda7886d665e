"""Fingerprints: what was built, as values that can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import blake2b
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

# What every nn.Module has: its tensors, children, hooks and flags.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = (int, float, complex, str, bytes, type(None), type, CodeType, torch.dtype, torch.device)


def take_fingerprint(built: object, *, weights: bool = True) -> object:
    """Describe a module, or another object, by all that decides what it computes.

    Two fingerprints are equal only if classes, attributes, shapes and the values of all tensors
    are. An object that cannot be looked into equals nothing but itself.

    Args:
        built: an auxiliary network, a loss, an encoder, or anything that such a module holds.
        weights: whether the values of parameters count, besides their shapes.

    Example:
        >>> take_fingerprint(nn.ReLU()) == take_fingerprint(nn.ReLU())
        True
        >>> take_fingerprint(nn.Dropout(0.1)) == take_fingerprint(nn.Dropout(0.2))
        False
        >>> one, other = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> take_fingerprint(one, weights=False) == take_fingerprint(other, weights=False)
        True
    """
    return _describe(built, (), weights=weights)


def _describe(value: Any, outer: tuple[int, ...], *, weights: bool) -> object:
    """Describe a value inside of others.

    Args:
        value: the value.
        outer: the ids of the objects around it. One of these again is a circle.
        weights: whether the values of parameters count.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return _describe_tensor(value, values=weights or not isinstance(value, nn.Parameter))
    if id(value) in outer:
        return "circle", len(outer) - outer.index(id(value))
    inside = partial(_describe, outer=(*outer, id(value)), weights=weights)
    if isinstance(value, tuple | list):
        return type(value), *map(inside, value)
    if isinstance(value, set | frozenset):
        return type(value), frozenset(map(inside, value))
    if isinstance(value, Mapping):
        return type(value), *((inside(key), inside(entry)) for key, entry in value.items())
    if isinstance(value, FunctionType):
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        return value.__code__, inside((value.__defaults__, value.__kwdefaults__, cells))
    if isinstance(value, MethodType):
        return value.__func__, inside(value.__self__)
    attributes = _find_attributes(value)
    return value if attributes is None else (type(value), inside(attributes))


def _describe_tensor(tensor: Tensor, *, values: bool) -> object:
    facts = (tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
    if tensor.is_meta or not values:
        return facts
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return *facts, blake2b(data.numpy().tobytes(), digest_size=16).digest()


def _find_attributes(value: Any) -> dict[str, Any] | None:
    """The attributes that make up an object, or None if it cannot be looked into."""
    if isinstance(value, nn.Module):
        own = {name: entry for name, entry in vars(value).items() if name not in _OF_EVERY_MODULE}
        tensors = {**value._parameters, **value._buffers}
        return {**own, "training": value.training, **tensors, **value._modules}
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, partial):
        return {"function": value.func, "arguments": value.args, "named": value.keywords}
    return getattr(value, "__dict__", None)
