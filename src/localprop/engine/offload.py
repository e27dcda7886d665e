"""Offload: what a forward saves for its backward waits in the memory of the host.

::

    F    h0 ──► operation ──► h1     what it saves is copied to the host, storage by storage
    B    g0 ◄── operation ◄── g1     it comes back when it is asked for; what was saved before it
                                     is then on its way, beside the kernels

The contract is that of `torch.autograd.graph.save_on_cpu`: the bits are the same. Parameters,
buffers and the batch live on the device anyway, and are not copied; views of one storage share a
copy, with their strides, since kernels may round by layout. What local losses save dies with their
action, and stays where it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from localprop.engine.frames import storage_of
from localprop.engine.plan import StepPlan
from localprop.tasks.batch import Batch


class Host(Protocol):
    """Keeps copies of tensors of one dimension."""

    def put(self, flat: Tensor) -> Any:
        """Begin to copy a tensor of the device; returns what stands for the copy."""

    def fetch(self, copy: Any) -> Tensor:
        """Begin to copy it back."""

    def wait(self, flat: Tensor) -> None:
        """Let kernels that follow wait until `fetch` has filled a tensor."""


class HostMemory:
    """Memory of the host. Where the device is the host, copies are read where they are.

    Args:
        device: where the tensors are that are put here.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def put(self, flat: Tensor) -> Tensor:
        """Copy to the host."""
        return flat.to("cpu", copy=True)

    def fetch(self, copy: Tensor) -> Tensor:
        """Copy back."""
        return copy.to(self.device)

    def wait(self, flat: Tensor) -> None:
        """All is there."""


class PinnedMemory(HostMemory):
    """Pinned memory beside a CUDA device. A stream of its own copies, while kernels run."""

    def put(self, flat: Tensor) -> Tensor:
        """Copy once the kernels so far have run. The tensor's memory is used again after that."""
        copy = torch.empty(flat.shape, dtype=flat.dtype, device="cpu", pin_memory=True)
        stream = _find_stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            copy.copy_(flat, non_blocking=True)
        flat.record_stream(stream)
        return copy

    def fetch(self, copy: Tensor) -> Tensor:
        """Copy back, once the copies so far are there."""
        with torch.cuda.stream(_find_stream(self.device)):
            return copy.to(self.device, non_blocking=True)

    def wait(self, flat: Tensor) -> None:
        """Let the kernels that follow wait for the copies so far."""
        kernels = torch.cuda.current_stream(self.device)
        kernels.wait_stream(_find_stream(self.device))
        flat.record_stream(kernels)


@cache
def _find_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def make_host(device: torch.device) -> Host:
    """The memory of the host, for tensors of a device."""
    return PinnedMemory(device) if device.type == "cuda" else HostMemory(device)


class Copied:
    """A storage whose values are on the host.

    Args:
        host: keeps the copy.
        flat: all of the storage.
        version: the version counter of its tensors.
        before: what was copied before it.
    """

    def __init__(self, host: Host, flat: Tensor, version: int, before: Copied | None) -> None:
        self.version, self.copy = version, host.put(flat)
        self._host = host
        self._before = None if before is None else weakref.ref(before)
        self._coming: Tensor | None = None  # on its way, and not asked for yet
        self._storage: weakref.ref[torch.UntypedStorage] | None = None

    def bring(self) -> torch.UntypedStorage:
        """The storage on the device. What was copied before it is then on its way, too."""
        storage = self._find()
        if storage is None:
            self._begin()
            flat, self._coming = self._coming, None
            assert flat is not None
            self._host.wait(flat)
            storage = flat.untyped_storage()
            self._storage = weakref.ref(storage)
            before = None if self._before is None else self._before()
            if before is not None and before._find() is None:
                before._begin()
        return storage

    def _find(self) -> torch.UntypedStorage | None:
        """The storage, while somebody still reads what was brought for another."""
        return None if self._storage is None else self._storage()

    def _begin(self) -> None:
        if self._coming is None:
            self._coming = self._host.fetch(self.copy)


class Saved(NamedTuple):
    """A saved tensor: a place in a storage."""

    copied: Copied
    place: tuple[int, torch.Size, tuple[int, ...]]
    dtype: torch.dtype
    device: torch.device

    def read(self) -> Tensor:
        """The tensor on the device."""
        empty = torch.empty(0, dtype=self.dtype, device=self.device)
        return empty.set_(self.copied.bring(), *self.place)


class Offload:
    """Keeps on the host what forwards save for their backwards.

    Args:
        modules: whose parameters and buffers stay on the device.
        host: keeps the copies.
    """

    def __init__(self, modules: list[nn.Module], host: Host) -> None:
        self.host = host
        self._modules = modules
        self._kept = set[int]()
        self._copied: dict[int, weakref.ref[Copied]] = {}
        self._last: weakref.ref[Copied] | None = None
        self._hooks: saved_tensors_hooks | None = None
        self._peeks = False

    def hook(self) -> Iterator[Any]:
        """No hooks of modules: those of saved tensors come with each forward."""
        yield from ()

    def begin_forward(self, batch: Batch) -> None:
        """A forward begins."""
        held = [
            tensor
            for module in self._modules
            for tensor in (*module.parameters(), *module.buffers())
        ]
        storages = map(storage_of, (*held, *batch.tensors))
        self._kept = {each._cdata for each in storages if each is not None}
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()

    def end_forward(self) -> None:
        """A forward has ended, or failed."""
        if self._hooks is not None:
            self._hooks.__exit__(None, None, None)
        self._hooks, self._last = None, None
        self._copied.clear()

    def is_innermost(self) -> bool:
        """Whether no other hooks see what is saved now, as those of a model's own checkpoint."""
        if self._hooks is None:
            return False
        pack, _ = torch._C._autograd._top_saved_tensors_default_hooks(False)
        return pack == self._hooks.pack_hook

    @contextmanager
    def peeking(self) -> Iterator[list[Any]]:
        """Within the context nothing comes back: who asks for a saved tensor gets the copy."""
        self._peeks = True
        try:
            yield []
        finally:
            self._peeks = False

    def _pack(self, tensor: Tensor) -> Tensor | Saved:
        storage = storage_of(tensor)
        tensor = tensor.detach()  # an output would hold its own graph
        if storage is None or storage._cdata in self._kept or not _is_plain(tensor, storage):
            return tensor
        place = int(tensor.storage_offset()), tensor.shape, tensor.stride()
        return Saved(self._copy(tensor, storage), place, tensor.dtype, tensor.device)

    def _copy(self, tensor: Tensor, storage: torch.UntypedStorage) -> Copied:
        """The copy of a storage, which tensors of the same version share."""
        known = self._copied.get(storage._cdata)
        copied = None if known is None else known()
        if copied is None or copied.version != tensor._version:
            before = None if self._last is None else self._last()
            flat = tensor.as_strided((storage.nbytes() // tensor.itemsize,), (1,), 0)
            copied = Copied(self.host, flat, tensor._version, before)
            self._last = self._copied[storage._cdata] = weakref.ref(copied)
            weakref.finalize(storage, self._copied.pop, storage._cdata, None)
        return copied

    def _unpack(self, saved: Tensor | Saved) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        if self._peeks:
            copy = saved.copied.copy
            return copy if isinstance(copy, Tensor) else torch.empty(0)
        return saved.read()


def _is_plain(tensor: Tensor, storage: torch.UntypedStorage) -> bool:
    """Whether a tensor reads a part of its storage as it is, and the storage consists of such."""
    changes = tensor.is_conj() or tensor.is_neg()
    return not changes and storage.nbytes() > 0 and storage.nbytes() % tensor.itemsize == 0


def make_offload(plan: StepPlan, model: nn.Module, host: Host | None) -> Offload | None:
    """What keeps on the host what the forwards of a step save, if there is a host to keep it.

    Args:
        plan: of the step.
        model: the primary network.
        host: keeps the copies.
    """
    return None if host is None else Offload([model, plan.wiring.encoders], host)
