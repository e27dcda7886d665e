"""Frames: what calls save for their backward is dropped, and made again by a second run.

::

    F    h0 ──► call ──► h1         what it saves passes through the frame, which drops it
    B    g0 ◄── call ◄── g1         the first saved tensor that is asked for: the call runs again,
                                    and what it saves stays until autograd lets go of it

So a call runs again once, also where several flows follow. Calls that run again together share a
frame, which keeps the arguments of the first; parts of them may run once more, so that the second
run keeps no more than the arguments of each part. What it needs for that are its
arguments, which are references, and what recompute.py keeps of the state around it.

The mechanism is that of gradient checkpointing (Chen et al. 2016, arXiv 1604.06174), in the form
without reentrant backwards that torch.utils.checkpoint has. That one runs again for each flow.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten


class NotContinued(Exception):
    """A call does not continue a frame: something between the calls takes part in the gradient."""


class OtherRun(Exception):
    """A second run has saved other tensors than the first."""


class Stopped(BaseException):
    """Ends a second run where all that is needed has been saved. No exception that a layer expects:
    `except Exception` must not see it.
    """


class Returned(Exception):
    """Ends a second run where the call returns, before users' hooks see that.

    Attributes:
        output: what the call has returned.
    """

    def __init__(self, output: Any = None) -> None:
        super().__init__()
        self.output = output


class Argument(NamedTuple):
    """A tensor among the arguments of a call.

    Attributes:
        tensor: the tensor, without its place in a graph.
        requires_grad: whether it had one.
        version: its version counter at that moment.
        is_copy: whether it is a copy, since the model writes into the tensor later.
        attributes: what somebody has set on it.
    """

    tensor: Tensor
    requires_grad: bool
    version: int
    is_copy: bool
    attributes: dict[str, Any]

    def give(self) -> Tensor:
        """The tensor for a second run."""
        tensor = self.tensor.detach().requires_grad_(self.requires_grad)
        if self.is_copy:  # nobody may write into a leaf
            tensor = tensor.clone()
        vars(tensor).update(self.attributes)
        return tensor


class HandedOver(NamedTuple):
    """Stands for an argument that the call before has returned, by its place."""

    position: int


class Arguments(NamedTuple):
    """The arguments of a call.

    Attributes:
        leaves: what they consist of, with `Argument` and `HandedOver` in the places of tensors; one
            of them where a tensor stands in several places.
        spec: their structure.
    """

    leaves: list[Any]
    spec: TreeSpec

    def give(self, before: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for a second run, in which the call before has returned these tensors."""
        given = {id(leaf): leaf.give() for leaf in self._list()}
        leaves = (
            before[leaf.position] if isinstance(leaf, HandedOver) else given.get(id(leaf), leaf)
            for leaf in self.leaves
        )
        args, kwargs = tree_unflatten(leaves, self.spec)
        return args, kwargs

    def are_overwritten(self) -> bool:
        """Whether somebody has written into a tensor since the call began."""
        return any(each.tensor._version != each.version for each in self._list())

    def list_tensors(self) -> Iterator[Tensor]:
        """The tensors that come from outside of the frame."""
        return (each.tensor for each in self._list())

    def _list(self) -> Iterator[Argument]:
        return (leaf for leaf in self.leaves if isinstance(leaf, Argument))


class Held:
    """A saved tensor: itself, or nothing while its frame has dropped it.

    Attributes:
        number: its place in the order of saving.
        tensor: the tensor.
        version: its version counter, which torch leaves to hooks.
    """

    __slots__ = (
        "__weakref__",
        "_device",
        "_dtype",
        "_is_view",
        "_place",
        "_storage",
        "number",
        "tensor",
        "version",
    )

    def __init__(self, number: int, tensor: Tensor) -> None:
        self.number = number
        self.tensor: Tensor | None = tensor
        self.version = tensor._version

    @property
    def storage(self) -> torch.UntypedStorage:
        """Its storage, before it is dropped."""
        assert self.tensor is not None
        return self.tensor.untyped_storage()

    def drop(self) -> None:
        """Let go of the tensor."""
        assert self.tensor is not None
        tensor, self.tensor = self.tensor, None
        self._place = tensor.storage_offset(), tensor.shape, tensor.stride()
        self._dtype, self._device = tensor.dtype, tensor.device
        self._storage = weakref.ref(tensor.untyped_storage())
        self._is_view = tensor.is_conj() or tensor.is_neg()  # which changes what is read

    def find(self) -> bool:
        """Take the tensor again if somebody else has kept it, as the next layer does its input.

        That is right unless somebody has written into it, which autograd forbids for what it has
        saved: without the frame such a model fails.
        """
        storage = self._storage()
        if storage is not None and not self._is_view:
            empty = torch.empty(0, dtype=self._dtype, device=self._device)
            self._take(empty.set_(storage, *self._place))
        return self.tensor is not None

    def fill(self, tensor: Tensor) -> None:
        """Take the tensor of a second run.

        Raises:
            OtherRun: it has another shape or dtype.
        """
        shape = self._place[1]
        if (tensor.shape, tensor.dtype) != (shape, self._dtype):
            raise OtherRun(
                f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype} was saved instead of "
                f"{tuple(shape)} and {self._dtype}"
            )
        self._take(tensor)

    def _take(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version


class Saved(NamedTuple):
    """What a call has saved and may drop.

    Attributes:
        dropped: nobody else needs it.
        outputs: what it has also returned: most often that lives on as an argument of the next.
        gain: bytes that get free, less those that live for the frame alone.
    """

    dropped: list[Held]
    outputs: list[Held]
    gain: int


class Frame:
    """What some calls save, each of which runs on what the one before has returned.

    Args:
        parameters: the storages of the model's parameters, which live anyway.
        run_again: called where a saved tensor is missing; fills the frame (`SecondRun`).
    """

    def __init__(self, parameters: set[int], run_again: Callable[[Frame, Held], None]) -> None:
        self._parameters, self._run_again = parameters, run_again
        self._begun = 0  # the place of the first tensor that the running call has saved
        # Storages of arguments, with the bytes that live for the frame alone.
        self._arguments: dict[int, int] = {}
        self._held: list[weakref.ref[Held] | None] = []
        self._hooks: saved_tensors_hooks | None = None
        # What the last call has returned: by id, the tensor, its place and its version.
        self._returned: dict[int, tuple[weakref.ref[Tensor], int, int]] | None = None
        # The storages of that.
        self._outputs = set[int]()

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, copied: bool) -> Arguments:
        """Begin a call: from here on, what is saved passes through the frame.

        Args:
            args: its arguments.
            kwargs: those given by name.
            copied: keep copies of tensors, since the model writes into one of them.

        Raises:
            NotContinued: an argument with a gradient is not what the call before has returned.
        """
        leaves, spec = tree_flatten((args, kwargs))
        tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}
        recorded = {key: self._record(tensor, copied) for key, tensor in tensors.items()}
        arguments = Arguments([recorded.get(id(leaf), leaf) for leaf in leaves], spec)
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        self._begun = len(self._held)
        return arguments

    @property
    def places(self) -> range:
        """The places of what the last call has saved."""
        return range(self._begun, len(self._held))

    def end(self, output: Any) -> None:
        """The call returns."""
        # The hooks know the frame, so a frame that knew them could not die at once.
        hooks, self._hooks = self._hooks, None
        assert hooks is not None
        hooks.__exit__(None, None, None)
        returned = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self._returned = {
            id(tensor): (weakref.ref(tensor), place, tensor._version)
            for place, tensor in enumerate(returned)
        }
        storages = map(storage_of, returned)
        self._outputs = {each._cdata for each in storages if each is not None}

    def find_saved(self) -> Saved:
        """What the last call has saved and may drop."""
        freed: dict[int, int] = {}
        dropped, outputs = list[Held](), list[Held]()
        for held in self.list_held(self.places):
            storage = held.storage
            if storage._cdata in self._outputs:
                outputs.append(held)
            else:
                dropped.append(held)
                freed[storage._cdata] = storage.nbytes()
        return Saved(dropped, outputs, sum(freed.values()) - sum(self._arguments.values()))

    def holds(self, storage: torch.UntypedStorage) -> bool:
        """Whether an argument has this storage."""
        return storage._cdata in self._arguments

    def list_held(self, places: range) -> list[Held]:
        """What autograd still has of what was saved at some places."""
        found = (ref() for ref in self._held[places.start : places.stop] if ref is not None)
        return [held for held in found if held is not None]

    def _record(self, tensor: Tensor, copied: bool) -> Any:
        if isinstance(tensor, nn.Parameter):
            return tensor
        if self._returned is not None:
            known = self._returned.get(id(tensor))
            if known is not None and known[0]() is tensor and known[2] == tensor._version:
                return HandedOver(known[1])
            if tensor.requires_grad:
                raise NotContinued
        kept = tensor.detach().clone() if copied else tensor.detach()
        storage = storage_of(kept)
        if storage is not None:
            # Constants, as masks and the batch are, live anyway.
            lives_for_us = tensor.requires_grad or copied
            self._arguments[storage._cdata] = storage.nbytes() if lives_for_us else 0
        return Argument(kept, tensor.requires_grad, kept._version, copied, dict(vars(tensor)))

    def _pack(self, tensor: Tensor) -> Held:
        held = Held(len(self._held), tensor.detach())  # an output would hold its own graph
        self._held.append(weakref.ref(held) if self._may_drop(tensor) else None)
        return held

    def _may_drop(self, tensor: Tensor) -> bool:
        storage = storage_of(tensor)
        if storage is None or storage._cdata in self._parameters:
            return False
        if storage._cdata in self._arguments:
            # What operations save of the arguments lives with the frame or without it.
            self._arguments[storage._cdata] = 0
            return False
        return True

    def _unpack(self, saved: Held) -> Tensor:
        if saved.tensor is None:
            self._run_again(self, saved)
        if saved.tensor is not None and saved.tensor._version != saved.version:
            raise RuntimeError(
                "a variable needed for gradient computation has been modified by an inplace "
                f"operation: a tensor of shape {tuple(saved.tensor.shape)}"
            )
        # Who only looks (`Recompute.peeking`) gets nothing.
        return torch.empty(0) if saved.tensor is None else saved.tensor


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """The storage of a tensor, if it has a single one."""
    is_strided = tensor.layout is torch.strided and not tensor.is_nested
    return tensor.untyped_storage() if is_strided else None


class SecondRun:
    """Fills what a frame has dropped, in the order in which it was saved.

    Args:
        frame: the frame.
        places: of what is to be filled, call by call.
        on_completion: called when all is there; the run goes on if this does not raise.

    Attributes:
        last: the last place to be filled; -1 if all is there.
        is_complete: whether all is there.
    """

    def __init__(
        self, frame: Frame, places: Iterable[range], on_completion: Callable[[], None]
    ) -> None:
        self._on_completion = on_completion
        dropped = (held for own in places for held in frame.list_held(own) if held.tensor is None)
        self._missing = {held.number: held for held in dropped if not held.find()}
        self.last, self._count, self._keeps = max(self._missing, default=-1), 0, True
        self.is_complete = not self._missing

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Fill within the context.

        Raises:
            OtherRun: calls saved other tensors than in their first run.
        """
        with torch.enable_grad(), saved_tensors_hooks(self._pack, self._unpack):
            yield
        if not self.is_complete:
            raise OtherRun("fewer tensors were saved")

    def begin(self, places: range, *, keeps: bool) -> None:
        """A call begins.

        Args:
            places: of what it has saved in its first run.
            keeps: whether that is filled now. Else the call runs once more.
        """
        self._count, self._keeps = places.start, keeps

    def _pack(self, tensor: Tensor) -> Tensor | None:
        place, self._count = self._count, self._count + 1
        if not self._keeps:
            return None
        tensor = tensor.detach()
        if place in self._missing:
            self._missing[place].fill(tensor)
        if place == self.last:
            self.is_complete = True
            self._on_completion()
        return tensor

    def _unpack(self, tensor: Tensor | None) -> Tensor:
        if tensor is None:
            raise OtherRun("a call differentiates within itself")
        return tensor
