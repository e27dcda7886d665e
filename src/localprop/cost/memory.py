"""Memory of a training step: measured on real tensors and predicted on fake ones.

Both readings count the bytes of every storage that PyTorch's operations make, from its allocation
until it is freed. It does not matter who holds the storage: Python, autograd, or only the next
operation. (Counting saved tensors alone misses a fifth of the peak.) The prediction runs the engine
itself on fake tensors, which have shapes and lifetimes but no data.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from localprop.cost.fake_engine import FakeEngine, RankSlice
from localprop.engine.engine import Engine
from localprop.rule.losses import Batch
from localprop.schedule.schedule import Action
from localprop.schedule.wiring import Wiring


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that are alive; a context manager.

    Args:
        held: existing tensors to count as well: parameters, buffers, optimizer state, the batch.

    Attributes:
        current: bytes alive now.
        peak: the largest value of `current` since the last `reset_peak`.

    Example:
        >>> import torch
        >>> with LiveBytes() as live:
        ...     a = torch.zeros(256)
        ...     b = a + 1
        ...     del a
        >>> live.peak, live.current
        (2048, 1024)
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.peak = 0
        self._known: set[int] = set()
        for tensor in held:
            self._track(tensor)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
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
        # Views share one storage, so its address in C++ is the key. torch keeps the storage's
        # Python object alive as long as the storage itself, so finalize runs when it is freed.
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.current += storage.nbytes()
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.current -= nbytes


@dataclass(frozen=True)
class MemoryReading:
    """The memory of one training step, in bytes.

    Attributes:
        peak_bytes: the peak: parameters, optimizer state, batch, activations and gradients.
        resting_bytes: alive between steps.
        module_bytes: for each local module, the peak while its actions run.
    """

    peak_bytes: int
    resting_bytes: int
    module_bytes: dict[int, int] = field(default_factory=dict)


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
) -> MemoryReading:
    """Predict the memory of a step by running the same engine on fake tensors, twice.

    Args:
        engine: its model, heads and optimizers are copied as fakes and stay as they are.
        optimizers: those that the caller steps after the engine's step.
        batch: only its shapes and dtypes are used.
        rank_slice: what a rank runs of the step, if not all that the engine runs.
    """
    fake = FakeEngine(engine, optimizers, batch, rank_slice)
    with fake.mode:
        fake.step()  # makes the optimizer state
        live = LiveBytes(fake.list_held())
        peaks = _ModulePeaks(engine.wiring, live)
        resting = live.current
        with live:
            if any(action.deferred for action in fake.engine.schedule):
                # In the steady loop the previous batch still holds what its deferred actions need.
                fake.step()
                resting = live.current
                live.reset_peak()
            fake.step(peaks.observe)
            peaks.end_action()
    return MemoryReading(max(peaks.by_module.values()), resting, peaks.by_module)


class _ModulePeaks:
    """The peak of each local module while its actions run.

    The engine calls an observer before each action, so a peak belongs to the action before.
    """

    def __init__(self, wiring: Wiring, live: LiveBytes) -> None:
        self.by_module: dict[int, int] = {}
        self._wiring = wiring
        self._live = live
        self._running = 0  # the module of the action that runs

    def observe(self, action: Action) -> None:
        self.end_action()
        self._running = self._wiring.segments[action.segment].module

    def end_action(self) -> None:
        peak = self._live.reset_peak()
        self.by_module[self._running] = max(self.by_module.get(self._running, 0), peak)
