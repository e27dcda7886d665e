"""Fake tensors for a look at a model: shapes and graphs without data; whole numbers have values.

::

    ids ──► mask ──► mask.all() ──► if ...      whole numbers alone: computed
     │
     └────► embedding(weight, ids) ──► ...      a parameter or a fraction takes part: fake
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._pytree import tree_map_only

from localprop.network.channels import list_tensors, storage_key

# What fakes raise where a value decides: .item(), nonzero, repeat_interleave.
VALUES_READ = (DataDependentOutputException, DynamicOutputShapeException)
# What a model makes without any input, such as torch.zeros(n) or torch.rand([]), is computed up to
# this size: models decide by such values. Larger ones are only shapes.
_LARGEST_VALUE = 4096


class FakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Runs a model on fake tensors; what follows from whole numbers alone is computed.

    The model's own parameters are the leaves of the graph: nothing is copied. A tensor that depends
    on a parameter or on a fraction of the batch is fake, and so is what is written with it.

    Args:
        opaque: real tensors whose values are not to be used: parameters, and fractions.
        imagine: go on where an operation needs values that a fake tensor has not, with imagined
            ones: fractions between 0 and 1, and ones. A mixture of experts then routes somehow.
        draw: the value of computed random fractions, if it is to be the same for all.

    Attributes:
        has_drawn: whether random numbers have been computed.
    """

    def __init__(
        self, opaque: Iterable[Tensor], *, imagine: bool = False, draw: float | None = None
    ) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.has_drawn = False
        self._draw = draw
        self._opaque = {storage_key(tensor) for tensor in opaque}
        self._imagine = imagine
        self._generator = torch.Generator().manual_seed(0)
        self._fakes: dict[int, tuple[Tensor, FakeTensor]] = {}
        self._is_inside = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        args, kwargs = tuple(args), dict(kwargs)
        # Some fake operations call others. Computing those would fill parts of a fake tensor with
        # what the memory happens to hold.
        if self._is_inside:
            return super().__torch_dispatch__(func, types, args, kwargs)
        tensors = list_tensors((*args, *kwargs.values()))
        if tensors and all(self._has_value(tensor) for tensor in tensors):
            return self._compute(func, args, kwargs)
        if not tensors:
            return self._make(func, types, args, _without_meta(kwargs))
        for argument, parameter in zip(args, func._schema.arguments, strict=False):
            is_written = parameter.alias_info is not None and parameter.alias_info.is_write
            if is_written and isinstance(argument, Tensor) and self._has_value(argument):
                self._opaque.add(storage_key(argument))
        try:
            return self._run_fake(func, types, args, _without_meta(kwargs))
        except Exception:
            if not self._imagine:
                raise
            return self._run_imagined(func, args, kwargs)

    def enter(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A tensor of a batch on a device: fake for fractions, else a copy with its values."""
        if _is_fraction(tensor):
            return self.make_fake(tensor, device)
        if tensor.is_meta:  # zeros are whole numbers that most models take
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device=claim_device(device))
        # A copy, since a forward may write into it.
        return tensor.to(claim_device(device), copy=True)

    def make_fake(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A fake tensor like a real one, on a device; on the CPU in place of `meta`.

        Not within the mode, where a tensor on `meta` cannot be made.
        """
        empty = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
        )
        return FakeTensor(self, empty, claim_device(device))

    def _has_value(self, tensor: Tensor) -> bool:
        return (
            not isinstance(tensor, FakeTensor)
            and tensor.device.type != "meta"
            and storage_key(tensor) not in self._opaque
        )

    def _make(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Make a tensor of nothing: with its values if it is small or of whole numbers."""
        fake = self._run_fake(func, types, args, kwargs)
        made = list_tensors([fake])
        computed = made and all(t.numel() <= _LARGEST_VALUE or not _is_fraction(t) for t in made)
        return self._compute(func, args, kwargs) if computed else fake

    def _compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.has_drawn = True
            if self._draw is not None and isinstance(output, Tensor) and _is_fraction(output):
                output.fill_(self._draw)
        return output

    def _run_fake(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = self._use_fakes(args), {k: self._use_fakes(v) for k, v in kwargs.items()}
        self._is_inside = True
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._is_inside = False

    def _use_fakes(self, value: Any) -> Any:
        """The arguments of an operation, with fake tensors."""
        if isinstance(value, Tensor):
            return self._use_fake(value)
        if type(value) in (tuple, list):  # plain loops: a look at a model runs thousands of these
            return type(value)(map(self._use_fakes, value))
        return value

    def _use_fake(self, tensor: Tensor) -> Tensor:
        """The fake tensor for a real one, always the same; torch caches operations on those only.

        A parameter on `meta` stands for one on the CPU, where batches and small values are.
        """
        if isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) not in self._fakes:
            if tensor.is_meta:
                fake = FakeTensor(self, tensor.detach(), torch.device("cpu"))
            else:
                fake = self.from_tensor(tensor.detach(), static_shapes=True)
            self._fakes[id(tensor)] = tensor, fake  # with the tensor, so that its id stays its own
        return self._fakes[id(tensor)][1]

    def _run_imagined(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, self._imagine_values, (args, kwargs))
        output = func(*args, **kwargs)
        return tree_map_only(Tensor, self._forget_values, output)

    def _forget_values(self, tensor: Tensor) -> Tensor:
        return self.from_tensor(tensor) if _is_fraction(tensor) else tensor

    def _imagine_values(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, FakeTensor):
            return tensor.detach()
        # Ones, since zeros would send nothing to an expert, and are no valid divisor.
        ones = torch.ones(tensor.shape, dtype=tensor.dtype, device=tensor.fake_device)
        if not tensor.is_floating_point():
            return ones
        drawn = torch.rand(tensor.shape, generator=self._generator)
        return drawn.to(device=tensor.fake_device, dtype=tensor.dtype)


def claim_device(device: torch.device) -> torch.device:
    """The device that fake tensors claim: that of the model, and the CPU for a model on `meta`."""
    return torch.device("cpu") if device.type == "meta" else device


@contextmanager
def quiet_fakes() -> Iterator[None]:
    """Within the context, torch does not log that a fake operation has failed."""
    # It logs each of them as an error, though another way follows.
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_fraction(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _without_meta(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    device = kwargs.get("device")
    if isinstance(device, torch.device) and device.type == "meta":
        return {**kwargs, "device": torch.device("cpu")}
    return dict(kwargs)
