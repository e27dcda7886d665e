"""Nested values as JSON, with their tensors apart: what a manifest of a checkpoint says.

JSON has neither tuples nor numbers that are not finite, and its keys are texts. Such values stand
as an object with one key, the name of their kind. Nothing is ever imported or run to read them.
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from localprop.errors import BadInput

Tensors = dict[str, Tensor]
# Types of which a JSON value is an exact copy.
_OWN = (type(None), bool, int, str)
_MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "ordered", Counter: "counter"}
_SEQUENCES: dict[type, str] = {tuple: "tuple", set: "set", frozenset: "frozenset"}
_SEQUENCES[torch.Size] = "size"


def encode(value: Any, tensors: Tensors, name: str = "") -> Any:
    """Encode a value, and collect its tensors.

    Tensors that are one and the same, as tied weights are, are collected once.

    Args:
        value: None, numbers, texts, bytes, tensors, arrays, dtypes and devices, and lists, tuples,
            sets and dictionaries of them.
        tensors: takes the tensors, by the names of their places: "model/conv.weight".
        name: the place of the value.

    Returns:
        What `json.dumps` takes.

    Raises:
        BadInput: a value of another kind, or a tensor that is sparse, quantized or without data.

    Example:
        >>> tensors = {}
        >>> encode({"betas": (0.9, 0.999), "mean": torch.ones(2)}, tensors)
        {'dict': {'betas': {'tuple': [0.9, 0.999]}, 'mean': {'tensor': 'mean'}}}
        >>> tensors
        {'mean': tensor([1., 1.])}
    """
    known = {_identify(tensor): key for key, tensor in tensors.items()}
    try:
        return _encode(value, name, _Collector(tensors, known))
    except RecursionError as error:
        raise BadInput(
            f"{name or 'The state'} holds itself, or is nested too deeply for a checkpoint: leave "
            "it out."
        ) from error


def decode(value: Any, find_tensor: Callable[[str], Tensor]) -> Any:
    """Decode what `encode` has returned.

    Args:
        value: the encoded value.
        find_tensor: returns the tensor of a name. Two places with one name get one tensor.

    Raises:
        ValueError: the value is none that `encode` returns.

    Example:
        >>> decode({"tuple": [1, {"float": "inf"}]}, {}.__getitem__)
        (1, inf)
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [decode(each, find_tensor) for each in value]
        case dict() if len(value) == 1:
            ((kind, content),) = value.items()
            return _decode_kind(kind, content, find_tensor)
    raise ValueError(f"{str(value)[:80]} is no value of a checkpoint")


# --- to JSON --------------------------------------------------------------------------------------


class _Collector:
    """Collects tensors under names of their own, each once."""

    def __init__(self, tensors: Tensors, known: dict[Any, str]) -> None:
        self.tensors = tensors
        self.known = known

    def add(self, tensor: Tensor, name: str) -> str:
        """Add a tensor, and return its name: an earlier one if the same tensor has one."""
        identity = _identify(tensor)
        if identity in self.known:
            return self.known[identity]
        while name in self.tensors:  # {1: ..., "1": ...}
            name += "'"
        self.tensors[name] = tensor
        self.known[identity] = name
        return name


def _identify(tensor: Tensor) -> Any:
    if not tensor.data_ptr():  # no data, which all such tensors would share
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _encode(value: Any, name: str, collector: _Collector) -> Any:
    kind = type(value)
    if kind in _OWN or (kind is float and math.isfinite(value)):
        return value
    if kind is list:
        return [_encode(each, f"{name}/{i}", collector) for i, each in enumerate(value)]
    if kind in _MAPPINGS:
        return {_MAPPINGS[kind]: _encode_items(value, name, collector)}
    if kind in _SEQUENCES:
        items = [_encode(each, f"{name}/{i}", collector) for i, each in enumerate(value)]
        return {_SEQUENCES[kind]: items}
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _encode_tensor(value, name, collector)
    return _encode_other(value, name)


def _encode_items(value: Mapping[Any, Any], name: str, collector: _Collector) -> Any:
    """An object if all keys are texts, otherwise pairs."""
    prefix = f"{name}/" if name else ""
    items = [(key, _encode(each, f"{prefix}{key}", collector)) for key, each in value.items()]
    if all(type(key) is str for key in value):
        return dict(items)
    return [[_encode(key, f"{name} (a key)", collector), each] for key, each in items]


def _encode_tensor(value: Any, name: str, collector: _Collector) -> Any:
    if type(value) in (Tensor, nn.Parameter):
        tensor = value.detach()
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            what = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
            raise BadInput(
                f"{name} is a tensor of the kind {'quantized' if tensor.is_quantized else what}, "
                "which a checkpoint cannot hold: make it a dense tensor."
            )
        return {"tensor": collector.add(tensor, name)}
    kind = "scalar" if isinstance(value, np.generic) else "array"
    try:
        # A copy, because torch warns of arrays that are read-only.
        tensor = torch.from_numpy(np.array(value))
    except (TypeError, ValueError):
        return _encode_other(value, name)
    return {kind: collector.add(tensor, name)}


def _encode_other(value: Any, name: str) -> Any:
    match value:
        case float() if type(value) is float:
            return {"float": repr(value)}
        case complex() if type(value) is complex:
            return {"complex": [repr(value.real), repr(value.imag)]}
        case bytes():
            return {"bytes": b64encode(value).decode()}
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case torch.device():
            return {"device": str(value)}
    raise BadInput(
        f"{name or 'The state'} is a {type(value).__name__}, which a checkpoint cannot hold: give "
        "tensors, numbers, texts, and lists and dictionaries of them, such as its state_dict()."
    )


# --- from JSON ------------------------------------------------------------------------------------


def _decode_kind(kind: str, content: Any, find_tensor: Callable[[str], Tensor]) -> Any:
    for types, make in ((_MAPPINGS, _decode_items), (_SEQUENCES, _decode_list)):
        for made, name in types.items():
            if name == kind:
                return made(make(content, find_tensor))
    match kind:
        case "tensor":
            return find_tensor(content)
        case "array":
            return find_tensor(content).numpy().copy()
        case "scalar":
            return find_tensor(content).numpy()[()]
        case "float":
            return float(content)
        case "complex":
            return complex(*map(float, content))
        case "bytes":
            return b64decode(content)
        case "dtype" if isinstance(getattr(torch, content, None), torch.dtype):
            return getattr(torch, content)
        case "device":
            return torch.device(content)
    raise ValueError(f"{kind[:80]!r} is no kind of value of a checkpoint")


def _decode_list(content: Any, find_tensor: Callable[[str], Tensor]) -> list[Any]:
    return [decode(each, find_tensor) for each in content]


def _decode_items(content: Any, find_tensor: Callable[[str], Tensor]) -> dict[Any, Any]:
    pairs: Iterable[Any] = content.items() if isinstance(content, dict) else content
    return {
        key if isinstance(content, dict) else decode(key, find_tensor): decode(each, find_tensor)
        for key, each in pairs
    }
