"""A batch of training data: whatever the loader yields, and where it holds its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from localprop.errors import BadInput, check
from localprop.tasks.task import describe, find_targets

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """A batch of training data.

    Attributes:
        data: what the loader yields: a tensor, a tuple, a dict, or tensors nested in those.
        dims: for each tensor in it, in the order of torch's pytree, the dimension that counts the
            samples; None where a tensor is the same for all samples.
        samples: the number of samples.
        input: the position of the network's input among these tensors.
        target: the position of the targets; None without any.
    """

    data: Any
    dims: tuple[int | None, ...]
    samples: int
    input: int = 0
    target: int | None = None

    @classmethod
    def of(cls, data: Any, targets: Any = ..., batch_dims: Any = ...) -> Batch:
        """Find the samples of a batch.

        Args:
            data: the batch.
            targets: the tensor among it whose first dimension counts the samples, or None; by
                default the usual targets. Without any, the first tensor counts.
            batch_dims: the dimension of each tensor that counts samples, or None, in the structure
                of the batch; an int holds for all tensors below its place. What is left out, of a
                dict, is found: dimension 0 where its size is that of the targets.

        Raises:
            BadInput: there is no tensor, or no dimension with the samples.
        """
        data = use_plain_dicts(data)
        if batch_dims is ...:
            check_samples_in_dimensions(data)
        tensors = list_batch_tensors(data)
        if not tensors:
            raise BadInput(f"A batch must hold tensors, but this one is {describe(data)}.")
        if targets is ...:
            targets = find_targets(data)
        dims = _spread_dims(data, batch_dims)
        check(_find_dim_problems(tensors, dims))
        target = next((i for i, tensor in enumerate(tensors) if tensor is targets), None)
        sizes = [t.shape[d] for t, d in zip(tensors, dims, strict=True) if isinstance(d, int)]
        if target is not None and dims[target] is ... and tensors[target].ndim:
            samples = tensors[target].shape[0]
        elif sizes:
            samples = sizes[0]
        else:
            samples = next((t.shape[0] for t in tensors if t.ndim), 0)
        found = tuple(
            (0 if t.ndim and t.shape[0] == samples else None) if d is ... else d
            for t, d in zip(tensors, dims, strict=True)
        )
        others = [i for i in range(len(tensors)) if i != target] or [0]
        fractions = [i for i in others if tensors[i].is_floating_point()]
        return cls(data, found, samples, (fractions or others)[0], target)

    def take(self, data: Any) -> Batch:
        """Other data of the same structure and shapes as a batch."""
        return Batch(data, self.dims, self.samples, self.input, self.target)

    def spread_dims(self) -> Any:
        """The dimensions in the structure of the batch, as `batch_dims` takes them."""
        leaves, spec = self._flat
        dims = iter(self.dims)
        return tree_unflatten([next(dims) if isinstance(x, Tensor) else None for x in leaves], spec)

    # Walking through the structure costs more than all else that a step does with its batch.
    @cached_property
    def _flat(self) -> tuple[list[Any], TreeSpec]:
        return tree_flatten(self.data)

    @cached_property
    def tensors(self) -> list[Tensor]:
        """The tensors of the batch."""
        return [leaf for leaf in self._flat[0] if isinstance(leaf, Tensor)]

    @property
    def inputs(self) -> Tensor:
        """The network's input: the first tensor of fractions that is no target, or the first."""
        return self.tensors[self.input]

    @property
    def targets(self) -> Any:
        """The targets, a tensor; None if the task has none."""
        return None if self.target is None else self.tensors[self.target]

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with other tensors."""
        leaves, spec = self._flat
        changed = [function(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return replace(self, data=tree_unflatten(changed, spec))

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; tensors on `meta` have no values to move, and stay there."""
        if all(tensor.device == device for tensor in self.tensors):
            return self
        return self.map(lambda t: t if t.is_meta else t.to(device, non_blocking=True))

    def clone(self) -> Batch:
        """A copy of the batch."""
        return self.map(torch.clone)

    def forget_classes(self) -> Batch:
        """The batch with 0 for all targets that are whole numbers: a class of every network."""
        targets = self.targets
        return self.map(
            lambda t: torch.zeros_like(t) if t is targets and not t.is_floating_point() else t
        )

    def split(self, parts: int) -> list[Batch]:
        """The batch in parts, the larger ones first.

        Raises:
            BadInput: there are fewer samples than parts, or no dimension counts them.
        """
        if parts == 1:
            return [self]
        if all(dim is None for dim in self.dims):
            raise BadInput(
                "No dimension of the batch counts samples (batch_dims), so that it cannot be split "
                f"into {parts} micro-batches: use microbatches=1."
            )
        if self.samples < parts:
            raise BadInput(
                f"A batch of {self.samples} cannot be split into {parts} micro-batches: use fewer."
            )
        small, larger = divmod(self.samples, parts)
        sizes = [small + 1] * larger + [small] * (parts - larger)
        starts = [sum(sizes[:i]) for i in range(parts)]
        return [self._narrow(start, size) for start, size in zip(starts, sizes, strict=True)]

    def select(self, count: int) -> Batch:
        """The first samples, which repeat if there are fewer."""
        if count <= self.samples:
            return self._narrow(0, count)
        return self._repeat(count)

    def resize(self, count: int) -> Batch:
        """The batch with so many samples, which repeat if there are fewer.

        Tensors of fractions lose their values: they are on the `meta` device, where they take no
        memory.
        """

        def change(tensor: Tensor, dim: int | None) -> Tensor:
            is_fraction = tensor.is_floating_point() or tensor.is_complex()
            return tensor.to("meta") if is_fraction else tensor

        return self._change(change)._repeat(count)

    def _repeat(self, count: int) -> Batch:
        def change(tensor: Tensor, dim: int | None) -> Tensor:
            if dim is None:
                return tensor
            chosen = torch.arange(count, device=tensor.device) % self.samples
            return tensor.index_select(dim, chosen)

        return replace(self._change(change), samples=count)

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """All that the forward of a model may depend on but values and the number of samples."""
        return tuple(
            (tensor.dtype, tensor.ndim, *(n for d, n in enumerate(tensor.shape) if d != dim))
            for tensor, dim in zip(self.tensors, self.dims, strict=True)
        )

    def _narrow(self, start: int, size: int) -> Batch:
        def change(tensor: Tensor, dim: int | None) -> Tensor:
            return tensor if dim is None else tensor.narrow(dim, start, size)

        return replace(self._change(change), samples=size)

    def _change(self, function: Callable[[Tensor, int | None], Tensor]) -> Batch:
        dims = iter(self.dims)
        return self.map(lambda tensor: function(tensor, next(dims)))


def check_samples_in_dimensions(data: Any) -> None:
    """Check that a batch does not hold its samples as the entries of lists.

    Raises:
        BadInput: it is a list of images with a list of dictionaries, as torchvision's detectors
            take them.
    """
    pair = data if isinstance(data, (tuple, list)) and len(data) == 2 else ((), ())
    inputs, targets = (each if isinstance(each, (tuple, list)) else () for each in pair)
    tensors = all(isinstance(each, Tensor) for each in inputs)
    if inputs and tensors and targets and all(isinstance(each, Mapping) for each in targets):
        raise BadInput(
            "The samples of this batch are the entries of lists, and no dimension counts them. "
            "A detector that computes its own loss can be trained with lp.end_to_end(), by "
            "batch_dims=None, which takes the batch as a whole, and task=lp.task(forward=lambda "
            "model, batch: sum(model(*batch).values()), loss=lambda total, targets: total)."
        )


def unwrap(data: Any) -> Any:
    """What the loader has given, also of a `Batch` that somebody has made of it."""
    return data.data if isinstance(data, Batch) else data


def list_batch_tensors(data: Any) -> list[Tensor]:
    """The tensors of a batch, in the order of torch's pytree."""
    return [leaf for leaf in tree_flatten(data)[0] if isinstance(leaf, Tensor)]


def find_shapes(data: Any) -> tuple[object, ...]:
    """The structure of a batch's data, and the dtype and shape of each tensor."""
    leaves, structure = tree_flatten(data)
    return structure, *((leaf.dtype, leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))


def use_plain_dicts(data: Any) -> Any:
    """Make dicts of other mappings, such as the encodings of tokenizers, which pytree opens."""
    if isinstance(data, Mapping):
        return {key: use_plain_dicts(value) for key, value in data.items()}
    if type(data) in (tuple, list):
        return type(data)(map(use_plain_dicts, data))
    return data


def _find_dim_problems(tensors: Iterable[Tensor], dims: Iterable[Any]) -> Iterator[str]:
    for tensor, dim in zip(tensors, dims, strict=True):
        if isinstance(dim, int) and not -tensor.ndim <= dim < tensor.ndim:
            yield f"batch_dims has {dim}, but a tensor of the batch is {tuple(tensor.shape)}."


def _spread_dims(data: Any, given: Any) -> list[Any]:
    """The given dimension of each tensor of a batch, `...` where none is given."""
    if isinstance(data, Tensor) and (given is None or given is ... or isinstance(given, int)):
        return [given]
    if isinstance(given, int) or given is None or given is ...:
        return [given] * len(list_batch_tensors(data))
    parts: Iterable[tuple[Any, Any]]
    if isinstance(data, dict) and isinstance(given, Mapping):
        parts = [(value, given.get(key, ...)) for key, value in data.items()]
    elif isinstance(data, (tuple, list)) and isinstance(given, (tuple, list)):
        if len(data) != len(given):
            raise BadInput(f"batch_dims={given!r} has {len(given)} parts, but a batch {len(data)}.")
        parts = zip(data, given, strict=True)
    else:
        raise BadInput(f"batch_dims={given!r} does not fit a batch that is {describe(data)}.")
    return [dim for value, dims in parts for dim in _spread_dims(value, dims)]
