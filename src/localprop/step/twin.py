"""A twin of an engine on fake tensors, which have shapes, dtypes and lifetimes, but no data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from localprop.rule.losses import Batch
from localprop.step.engine import Engine
from localprop.step.optimizers import Optimizers
from localprop.step.schedule import Action


class Twin:
    """An engine, its model, heads, optimizers and a batch, all on fake tensors; the originals are left alone.

    Use it inside `with twin.mode`.

    Args:
        engine: what is copied.
        optimizers: those that the caller steps himself after the engine's step.
        batch: only shapes and dtypes are used.
    """

    def __init__(self, engine: Engine, optimizers: Iterable[Optimizer], batch: Batch) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=False)
        fakes = _Fakes(self.mode)
        self.engine, self.outside = _twin(engine, list(optimizers), fakes)
        self.batch = Batch(fakes.of(batch.inputs), fakes.of(batch.targets))

    def step(self, observe: Callable[[Action], object] | None = None) -> None:
        """A whole training step."""
        self.engine.step(self.batch, observe=observe)
        for optimizer in self.outside:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def held(self) -> list[Tensor]:
        """The tensors that live between steps."""
        engine = self.engine
        modules = (engine.model, engine.wiring.heads, engine.wiring.encoders)
        return held_by(modules, [*self.outside, *engine.optimizers.all()], self.batch)


def held_by(modules: Iterable[nn.Module], optimizers: Iterable[Optimizer], batch: Batch) -> list[Tensor]:
    """The tensors that live between steps: parameters, buffers, optimizer state and the batch."""
    owned = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return [*owned, *(tensor for optimizer in optimizers for tensor in _state_tensors(optimizer)), *batch]


def _state_tensors(optimizer: Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


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
    optimizers = [*engine.optimizers.all(), *shared]
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            fakes.of(tensor)
    for optimizer in optimizers:
        for tensor in (*_state_tensors(optimizer), *(p for group in optimizer.param_groups for p in group["params"])):
            fakes.of(tensor)
    tables = (engine.optimizers.by_segment, engine.optimizers.by_objective)
    (model, heads, encoders), copied, outside = copy.deepcopy((modules, tables, shared), fakes.memo)
    twin = Engine(
        model,
        replace(engine.wiring, heads=heads, encoders=encoders),
        engine.schedule,
        Optimizers(*copied),
        device=engine.device,
        autocast=engine.autocast,
    )
    if twin.rerun is not None:
        twin.rerun.unproven.clear()  # fake tensors have no values to compare
    return twin, outside
