"""Memory: the bytes of all storages that live during a step, measured on real tensors and predicted on fake ones.

Both readings are of the same kind: every storage that PyTorch's operations make is counted from its birth to its death, be
it held by Python, by autograd, or by nobody but the next operation. (Counting saved tensors alone misses a fifth of the
peak.) The prediction is the engine itself run on fake tensors, which have shapes and lifetimes but no data.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from localprop.rule.losses import Batch
from localprop.step.engine import Engine
from localprop.step.schedule import Action


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


def held_by(model: nn.Module, optimizers: Iterable[Optimizer], batch: Batch, *others: nn.Module) -> list[Tensor]:
    """The tensors that live between steps."""
    modules = [tensor for module in (model, *others) for tensor in (*module.parameters(), *module.buffers())]
    return [*modules, *(t for optimizer in optimizers for t in _state_tensors(optimizer)), *batch]


def _state_tensors(optimizer: Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def peak_of(step: Callable[[], object], held: Iterable[Tensor], device: torch.device) -> MemoryReading:
    """Measure one call of `step`: by live storages, on a CUDA device by PyTorch's allocator.

    Args:
        step: a training step that has run before, so that optimizer state exists.
        held: tensors that live between steps (:func:`held_by`).
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


def predict(engine: Engine, optimizers: Iterable[Optimizer], batch: Batch) -> MemoryReading:
    """What a step of an engine will need, without running it: the same engine on fake tensors, twice.

    Args:
        engine: its model, heads and optimizers are copied as fakes, and left alone.
        optimizers: those that the caller steps himself after the engine's step.
        batch: only shapes and dtypes are used.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    fakes, optimizers = _Fakes(mode), list(optimizers)
    twin, shared = _twin(engine, optimizers, fakes)
    batch = Batch(fakes.of(batch.inputs), fakes.of(batch.targets))
    with mode:
        _whole_step(twin, shared, batch)
        stepped = [*shared, *twin.optimizers]
        live = LiveBytes(held_by(twin.model, stepped, batch, twin.wiring.heads, twin.wiring.encoders))
        resting, modules, running = live.current, dict[int, int](), [0]

        def observe(action: Action) -> None:
            modules[running[0]] = max(modules.get(running[0], 0), live.mark())
            running[0] = twin.wiring.segments[action.segment].module

        with live:
            _whole_step(twin, shared, batch, observe)
            observe(twin.schedule[-1])
    return MemoryReading(max(modules.values()), resting, modules)


def _whole_step(
    engine: Engine, shared: list[Optimizer], batch: Batch, observe: Callable[[Action], object] | None = None
) -> None:
    engine.step(batch, observe=observe)
    for optimizer in shared:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class _Fakes:
    """Fake tensors for real ones, each made once, so that ties and views of one parameter stay together."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.memo: dict[int, Any] = {}

    def of(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.memo:
            fake: Tensor = self.mode.from_tensor(tensor.detach(), static_shapes=True)
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            self.memo[id(tensor)] = fake
        made: Tensor = self.memo[id(tensor)]
        return made


def _twin(engine: Engine, shared: list[Optimizer], fakes: _Fakes) -> tuple[Engine, list[Optimizer]]:
    """A copy of the engine and all that it works on, on fake tensors."""
    modules = (engine.model, engine.wiring.heads, engine.wiring.encoders)
    optimizers = [*engine.optimizers, *shared]
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            fakes.of(tensor)
    for optimizer in optimizers:
        for tensor in (*_state_tensors(optimizer), *(p for group in optimizer.param_groups for p in group["params"])):
            fakes.of(tensor)
    (model, heads, encoders), by_segment, by_objective, outside = copy.deepcopy(
        (modules, engine.segment_optimizers, engine.objective_optimizers, shared), fakes.memo
    )
    twin = Engine(
        model,
        replace(engine.wiring, heads=heads, encoders=encoders),
        engine.schedule,
        by_segment,
        by_objective,
        device=engine.device,
        autocast=engine.autocast,
    )
    if twin.rerun is not None:
        twin.rerun.unproven.clear()  # fake tensors have no values to compare
    return twin, outside
