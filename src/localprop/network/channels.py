"""Which dimension of features holds the channels: the one that the next layer contracts or scales.

::

    features (N, T, C) ──► view (N * T, C) ──► mm with a weight (C, D)      the last one: C
    features (N, C, T) ──► convolution                                      dimension 1: C

A shape alone does not tell (N, C, T) from (N, T, C). So the dimensions of what a module returns are
followed through the operations of the forward, up to the first one that uses them with a parameter.
Where that does not tell, as before an nn.Flatten, the last operation with a parameter in front of
the features does.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Dims = list[int | None]  # of a tensor, the dimension of the features that each of its own is

_OF_CONVOLUTIONS = {"convolution", "_convolution", "mkldnn_convolution", "native_group_norm"}
_OF_BATCH_NORMS = {
    "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm",
    "_batch_norm_with_update",
}  # fmt: skip
_OF_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "_linear"}
_OF_SCALES = {"mul", "mul_", "add", "add_", "prelu", "_prelu_kernel"}
# Their results have the dimensions of their inputs, but for those whose size changes.
_KEEPING_ORDER = {
    "mean", "sum", "view", "_unsafe_view", "reshape", "expand", "slice", "cat", "constant_pad_nd",
    "roll", "avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d_with_indices", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_linear1d", "upsample_trilinear3d",
}  # fmt: skip


# Their results are parts of their input along one dimension.
_PARTS = {"slice", "split", "split_with_sizes", "narrow", "unsafe_split", "chunk"}


class ChannelFinder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds the channels of what modules return, while a forward runs; a context manager.

    Args:
        parameters: of the model.

    Attributes:
        found: by the id of a tensor that was followed, the dimension of its channels. Whoever asks
            keeps the tensor alive.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[int, int] = {}
        self._parameters = {storage_key(parameter) for parameter in parameters}
        # For each tensor, with itself so that its id stays its own, what it comes from.
        self._followed: dict[int, tuple[Tensor, dict[int, Dims]]] = {}
        # For each tensor, the dimension that operations with parameters have made of channels.
        self._made: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._made_for: dict[int, int] = {}

    def follow(self, tensor: Tensor) -> None:
        """Follow a tensor, from the moment at which a module returns it."""
        if tensor.ndim > 2 and id(tensor) not in self.found:
            origins = self._followed.setdefault(id(tensor), (tensor, {}))[1]
            origins[id(tensor)] = list(range(tensor.ndim))
            made = self.find_made(tensor)
            if made is not None:
                self._made_for[id(tensor)] = made

    def find(self, tensor: Tensor) -> int | None:
        """The dimension of the channels of a tensor that was followed."""
        return self.found.get(id(tensor), self._made_for.get(id(tensor)))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = list_tensors(args)
        made = next(iter(list_tensors([output])), None)
        if not tensors or made is None:
            return output
        name = func.overloadpacket.__name__
        if any(id(tensor) in self._followed for tensor in tensors):
            for each in list_tensors([output]) if name in _PARTS else [made]:
                self._follow_through(name, args, tensors, each)
        elif all(self._is_parameter(tensor) for tensor in tensors):
            # What is made of parameters alone is one: a transpose, a normalised weight.
            self._parameters.update(map(storage_key, list_tensors([output])))
            return output
        self._note_made(name, args, tensors, made)
        return output

    def _note_made(
        self, name: str, args: tuple[Any, ...], tensors: list[Tensor], made: Tensor
    ) -> None:
        """Note which dimension of a result holds channels."""
        if name in _OF_CONVOLUTIONS or name in _OF_BATCH_NORMS:
            channel: int | None = 1
        elif name in _OF_PRODUCTS and any(map(self._is_parameter, tensors)):
            channel = made.ndim - 1
        else:
            used = [self._find_used(name, each, args, tensors) for each in tensors[:2]]
            channel = next((dim for dim in used if dim is not None), None)
        if channel is None or channel >= made.ndim:
            channel = next(iter(self._carry_made(name, args, tensors, made)), None)
        if channel is not None:
            self._made[id(made)] = weakref.ref(made), channel

    def _carry_made(
        self, name: str, args: tuple[Any, ...], tensors: list[Tensor], made: Tensor
    ) -> Iterator[int]:
        for tensor in tensors:
            channel = self.find_made(tensor)
            if channel is not None and channel < tensor.ndim:
                dims: Dims = [channel if d == channel else None for d in range(tensor.ndim)]
                carried = _carry(name, dims, tensor, made, args)
                yield from (d for d, dim in enumerate(carried) if dim == channel)

    def find_made(self, tensor: Tensor) -> int | None:
        """The dimension that operations with parameters have made of a tensor's channels."""
        known = self._made.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def _follow_through(
        self, name: str, args: tuple[Any, ...], tensors: list[Tensor], made: Tensor
    ) -> None:
        """Take the channels of what an operation reads, or follow it to what it returns."""
        for tensor in tensors:
            _, origins = self._followed.get(id(tensor), (tensor, {}))
            if not origins:
                continue
            used = self._find_used(name, tensor, args, tensors)
            for origin, dims in list(origins.items()):
                channel = None if used is None else dims[used]
                if channel is not None and origin not in self.found:
                    self.found[origin] = channel
                if origin in self.found:
                    del origins[origin]
                elif made is not tensor:
                    new = _carry(name, dims, tensor, made, args)
                    if any(dim is not None for dim in new):
                        self._followed.setdefault(id(made), (made, {}))[1][origin] = new

    def _find_used(
        self, name: str, tensor: Tensor, args: tuple[Any, ...], tensors: list[Tensor]
    ) -> int | None:
        """The dimension of a tensor that an operation contracts or scales with a parameter."""
        is_first = bool(args) and args[0] is tensor
        if name in _OF_CONVOLUTIONS or name in _OF_BATCH_NORMS:
            return 1 if is_first and tensor.ndim > 1 else None
        if name == "native_layer_norm" and is_first:
            return tensor.ndim - 1 if len(args[1]) == 1 else None
        if name == "_fused_rms_norm" and is_first:
            return tensor.ndim - 1
        if is_first and any(kind in name for kind in ("rnn", "lstm", "gru")):
            return tensor.ndim - 1
        weights = [other for other in tensors if self._is_parameter(other)]
        if name in _OF_PRODUCTS and weights:
            is_right = args[-1] is tensor or (len(args) > 1 and args[1] is tensor and name == "mm")
            return tensor.ndim - 2 if is_right and tensor.ndim > 1 else tensor.ndim - 1
        if name in _OF_SCALES and len(weights) == 1 and weights[0].ndim <= tensor.ndim:
            wide = [d - weights[0].ndim for d, size in enumerate(weights[0].shape) if size > 1]
            if name.endswith(("prelu", "prelu_kernel")) and weights[0].ndim == 1:
                return 1 if weights[0].numel() > 1 else None
            return tensor.ndim + wide[0] if len(wide) == 1 else None
        return None

    def _is_parameter(self, tensor: Tensor) -> bool:
        return storage_key(tensor) in self._parameters


def list_tensors(args: Iterable[Any]) -> list[Tensor]:
    """The tensors among the arguments of an operation, which are nested in lists at most."""
    found: list[Tensor] = []
    for value in args:  # a plain loop: a look at a model runs thousands of operations
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += list_tensors(value)
    return found


def _carry(name: str, dims: Dims, tensor: Tensor, output: Tensor, args: tuple[Any, ...]) -> Dims:
    """The dimensions of the features that the output of an operation still has."""
    if name in _PARTS and output.ndim == tensor.ndim:
        return list(dims)
    if storage_key(output) == storage_key(tensor):  # a view: strides tell which is which
        return [_find_same(dims, tensor, output, d) for d in range(output.ndim)]
    if output.shape == tensor.shape:
        return list(dims)
    if name in _KEEPING_ORDER and output.ndim == tensor.ndim:
        pairs = zip(dims, tensor.shape, output.shape, strict=True)
        return [dim if a == b else None for dim, a, b in pairs]
    if name in ("mean", "sum", "amax") and output.ndim < tensor.ndim and len(args) > 1:
        gone = {dim % tensor.ndim for dim in _as_list(args[1])}
        return [dim for d, dim in enumerate(dims) if d not in gone]
    if name in ("view", "_unsafe_view", "reshape", "clone"):  # of another storage: the last stays
        same = output.ndim and tensor.shape[-1] == output.shape[-1]
        return [None] * (output.ndim - 1) + [dims[-1] if same else None]
    return [None] * output.ndim


def _find_same(dims: Dims, tensor: Tensor, output: Tensor, d: int) -> int | None:
    size, stride = output.shape[d], output.stride(d)
    if size == 1:
        return None
    pairs = zip(tensor.shape, tensor.stride(), dims, strict=True)
    return next((dim for n, step, dim in pairs if (n, step) == (size, stride)), None)


def _as_list(value: Any) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def storage_key(tensor: Tensor) -> int:
    """What tells storages apart: views of one have one key."""
    return int(tensor.untyped_storage()._cdata)
