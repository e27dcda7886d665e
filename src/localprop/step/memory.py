"""Memory: the bytes of all storages that live during a step, measured on real tensors and predicted on fake ones.

Both readings are of the same kind: every storage that PyTorch's operations make is counted from its birth to its death, be
it held by Python, by autograd, or by nobody but the next operation. (Counting saved tensors alone misses a fifth of the
peak.) The prediction is the engine itself run on fake tensors, which have shapes and lifetimes but no data.
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

from localprop.rule.losses import Batch
from localprop.step.engine import Engine
from localprop.step.schedule import Action
from localprop.step.twin import Part, Twin


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that are alive; a context manager.

    Args:
        held: tensors that exist already and are to be counted: parameters, buffers, optimizer state, the batch.

    Attributes:
        current: bytes alive now.
        peak: the most that were alive at once since the last :meth:`mark`.

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
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in [made] if isinstance(made, Tensor) else tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._track(tensor)
        return made

    def mark(self) -> int:
        """The peak since the last mark, in bytes; begins a new one."""
        peak, self.peak = self.peak, self.current
        return peak

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.current += storage.nbytes()
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._died, key, storage.nbytes())

    def _died(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.current -= nbytes


@dataclass(frozen=True)
class MemoryReading:
    """The memory of one training step, in bytes.

    Attributes:
        peak_bytes: the most that was alive at once: parameters, optimizer state, batch, activations, gradients.
        resting_bytes: what is alive between steps.
        module_bytes: the peak while the actions of each local module ran.
    """

    peak_bytes: int
    resting_bytes: int
    module_bytes: dict[int, int] = field(default_factory=dict)


def peak_of(step: Callable[[], object], held: Iterable[Tensor], device: torch.device) -> MemoryReading:
    """Measure one call of `step`: by live storages, on a CUDA device by PyTorch's allocator.

    Args:
        step: a training step that has run before, so that optimizer state exists.
        held: tensors that live between steps (:func:`localprop.step.twin.held_by`).
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


def predict(engine: Engine, optimizers: Iterable[Optimizer], batch: Batch, part: Part | None = None) -> MemoryReading:
    """What a step of an engine will need, without running it: the same engine on fake tensors, twice.

    Args:
        engine: its model, heads and optimizers are copied as fakes, and left alone.
        optimizers: those that the caller steps himself after the engine's step.
        batch: only shapes and dtypes are used.
        part: the part of a rank, if not all that the engine runs.
    """
    twin = Twin(engine, optimizers, batch, part)
    with twin.mode:
        twin.step()  # makes the optimizer state
        live = LiveBytes(twin.held())
        resting, modules, running = live.current, dict[int, int](), [0]

        def observe(action: Action) -> None:
            modules[running[0]] = max(modules.get(running[0], 0), live.mark())
            running[0] = engine.wiring.segments[action.segment].module

        with live:
            if any(action.late for action in twin.engine.schedule):
                twin.step()  # in the steady loop the batch before is still about
                resting = live.current
                live.mark()
            twin.step(observe)
            observe(twin.engine.schedule[-1])
    return MemoryReading(max(modules.values()), resting, modules)
