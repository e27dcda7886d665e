"""Memory of a training step: measured on real tensors and predicted on fake ones.

Both readings count the bytes of every storage that PyTorch's operations make, from its allocation
until it is freed. It does not matter who holds the storage: Python, autograd, or only the next
operation. (Counting saved tensors alone misses a fifth of the peak.) The prediction runs the engine
itself on fake tensors, which have shapes and lifetimes but no data.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from localprop.cost.counted_host import CountedHost
from localprop.cost.fake_engine import RankSlice, faked
from localprop.engine.engine import Engine
from localprop.schedule.schedule import Action
from localprop.tasks.batch import Batch
from localprop.tasks.task import describe


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that are alive; a context manager.

    Args:
        held: existing tensors to count as well: parameters, buffers, optimizer state, the batch.
        count: what a storage of so many bytes counts for.

    Attributes:
        current: bytes alive now.
        peak: the largest value of `current` since the last `reset_peak`.
        sizes: the bytes of each storage that is alive.

    Example:
        >>> import torch
        >>> with LiveBytes() as live:
        ...     a = torch.zeros(256)
        ...     b = a + 1
        ...     del a
        >>> live.peak, live.current
        (2048, 1024)
    """

    def __init__(
        self, held: Iterable[Tensor] = (), *, count: Callable[[int], int] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._count = count
        self.current = 0
        self.peak = 0
        self.sizes: dict[int, int] = {}
        for tensor in held:
            self._track(tensor)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked twice an operation, and makes nothing
        output = func(*args, **(kwargs or {}))
        # Most operations return one tensor, and tree_leaves is slow.
        for tensor in [output] if isinstance(output, Tensor) else tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._track(tensor)
        return output

    def reset_peak(self) -> int:
        """Return the peak in bytes since the last reset, and start again from the current bytes."""
        peak, self.peak = self.peak, self.current
        return peak

    def _track(self, tensor: Tensor) -> None:
        for storage in storages_of(tensor):
            # Views share one storage, so its address in C++ is the key. torch keeps the storage's
            # Python object alive as long as the storage itself, so finalize runs when it is freed.
            key, nbytes = storage._cdata, storage.nbytes()
            if key not in self.sizes:
                nbytes = nbytes if self._count is None else self._count(nbytes)
                self.sizes[key] = nbytes
                self.current += nbytes
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._forget, key, nbytes)

    def keys(self) -> set[int]:
        """The keys of the storages that are alive, those held from the beginning included."""
        return set(self.sizes)

    def _forget(self, key: int, nbytes: int) -> None:
        self.sizes.pop(key, None)
        self.current -= nbytes


def storages_of(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """The storages that a tensor lives in: one, or those of a sparse tensor's indices and values.

    oneDNN's own layout has none that can be seen.
    """
    layout = tensor.layout
    if layout is torch.strided or layout is torch.jagged:
        yield tensor.untyped_storage()
    elif layout is torch.sparse_coo:
        yield from (part.untyped_storage() for part in (tensor._indices(), tensor._values()))
    elif layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
        yield from (part.untyped_storage() for part in parts)
    elif layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
        yield from (part.untyped_storage() for part in parts)


@dataclass(frozen=True)
class MemoryReading:
    """The memory of one training step, in bytes.

    Attributes:
        peak_bytes: the peak: parameters, optimizer state, batch, activations and gradients.
        resting_bytes: alive between steps.
        module_bytes: for each local module, the peak while its actions run.
        host_bytes: the most that is offloaded to the host at once; None where nothing is, and on a
            device that is the host, where the peak has it.
        batch: what the reading holds for. A batch of other shapes takes another amount.
    """

    peak_bytes: int
    resting_bytes: int
    module_bytes: dict[int, int] = field(default_factory=dict)
    host_bytes: int | None = None
    batch: str = field(default="", compare=False)


def measure_peak(
    step: Callable[[], object], held: Iterable[Tensor], device: torch.device
) -> MemoryReading:
    """Measure one call of `step`, by live storages or, on a CUDA device, by PyTorch's allocator.

    Args:
        step: a training step that has run before, so that optimizer state exists.
        held: tensors that live between steps (`localprop.cost.fake_engine.list_held_tensors`).
        device: where they are.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        resting = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return MemoryReading(torch.cuda.max_memory_allocated(device), resting)
    with LiveBytes(held) as live:
        resting = live.current
        step()
    return MemoryReading(live.peak, resting)


def predict_memory(
    engine: Engine,
    optimizers: Iterable[Optimizer],
    batch: Batch,
    rank_slice: RankSlice | None = None,
    *,
    count: Callable[[int], int] | None = None,
) -> MemoryReading:
    """Predict the memory of a step by running the same engine on fake tensors, twice.

    Args:
        engine: its model, heads and optimizers hold fakes meanwhile, and are then as before.
        optimizers: those that the caller steps after the engine's step.
        batch: only its shapes and dtypes are used.
        rank_slice: what a rank runs of the step, if not all that the engine runs.
        count: as for `LiveBytes`.
    """
    peaks, resting = watch_fake_step(
        engine, optimizers, batch, rank_slice, ModulePeaks, count=count
    )
    return replace(peaks.read(resting), batch=describe(batch.data))


class Watcher(Protocol):
    """Looks at a step on fake tensors, action by action."""

    def observe(self, action: Action) -> None:
        """Called before each action."""

    def end_action(self) -> object:
        """Called after the last one, too."""


_W = TypeVar("_W", bound=Watcher)


def watch_fake_step(
    engine: Engine,
    optimizers: Iterable[Optimizer],
    batch: Batch,
    rank_slice: RankSlice | None,
    make_watcher: Callable[[Engine, LiveBytes], _W],
    *,
    count: Callable[[int], int] | None = None,
) -> tuple[_W, int]:
    """Run a step of an engine on fake tensors, as it is in the steady loop.

    Args:
        engine: its model, heads and optimizers hold fakes meanwhile, and are then as before.
        optimizers: those that the caller steps after the engine's step.
        batch: only its shapes and dtypes are used.
        rank_slice: what a rank runs of the step, if not all that the engine runs.
        make_watcher: makes the watcher, from the fake engine and the count of live bytes.
        count: as for `LiveBytes`.

    Returns:
        The watcher, and the bytes that are alive between steps.
    """
    with faked(engine, optimizers, batch, rank_slice) as fake:
        fake.step()  # makes the optimizer state
        live = LiveBytes(fake.list_held(), count=count)
        watcher = make_watcher(fake.engine, live)
        resting = live.current
        with live:
            if any(action.deferred for action in fake.engine.schedule):
                # In the steady loop the previous batch still holds what its deferred actions need.
                fake.step()
                resting = live.current
                live.reset_peak()
            fake.step(watcher.observe)
            watcher.end_action()
    return watcher, resting


class ModulePeaks:
    """The peak of each local module while its actions run.

    The engine calls an observer before each action, so a peak belongs to the action before.
    """

    def __init__(self, engine: Engine, live: LiveBytes) -> None:
        self.by_module: dict[int, int] = {}
        self._wiring, self._offload = engine.wiring, engine.offload
        self._live = live
        self._running = 0  # the module of the action that runs

    def observe(self, action: Action) -> None:
        """End the action that runs, and begin the next one."""
        self.end_action()
        self.begin(action)

    def begin(self, action: Action) -> None:
        """Count for the module of an action from here on."""
        self._running = self._wiring.segments[action.segment].module

    def end_action(self) -> int:
        """End the action that runs, and return its peak."""
        peak = self._live.reset_peak()
        self.by_module[self._running] = max(self.by_module.get(self._running, 0), peak)
        return peak

    def read(self, resting_bytes: int) -> MemoryReading:
        """The reading of the whole step."""
        peak = max(self.by_module.values())
        return MemoryReading(peak, resting_bytes, self.by_module, self._count_host_bytes())

    def _count_host_bytes(self) -> int | None:
        host = self._offload and self._offload.host
        return host.peak if isinstance(host, CountedHost) else None
