"""A twin of an engine on fake tensors, which have shapes, dtypes and lifetimes, but no data."""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from localprop.rule.losses import Batch
from localprop.step.engine import Engine
from localprop.step.optimizers import Optimizers
from localprop.step.schedule import RECEIVES, REDUCES, Action, Op, Schedule
from localprop.step.stage import Stage, release
from localprop.step.wiring import Wiring


class Twin:
    """An engine, its model, heads, optimizers and a batch, all on fake tensors; the originals are left alone.

    Use it inside `with twin.mode`.

    Args:
        engine: what is copied.
        optimizers: those that the caller steps himself after the engine's step.
        batch: only shapes and dtypes are used.
        part: the part of the step to run, if not the engine's own: that of a rank.
    """

    def __init__(self, engine: Engine, optimizers: Iterable[Optimizer], batch: Batch, part: Part | None = None) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=False)
        fakes = _Fakes(self.mode)
        self.engine, self.outside = _twin(engine, list(optimizers), fakes, part)
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
            fake: Tensor
            if tensor.ndim == 0 and not isinstance(tensor, nn.Parameter):
                value = tensor.item()
                with self.mode:  # made here, its value is known: Adam asks for that of its counter
                    fake = torch.tensor(value, dtype=tensor.dtype, device=tensor.device)
            else:
                fake = self.mode.from_tensor(tensor.detach(), static_shapes=True)
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            self.memo[id(tensor)] = fake
        made: Tensor = self.memo[id(tensor)]
        return made


class Part(NamedTuple):
    """The part of a rank in a step.

    Attributes:
        stage: its segments.
        schedule: its actions.
        allowed: messages of one channel that may be under way at once.
    """

    stage: Stage
    schedule: Schedule
    allowed: int = 2


class _Echo:
    """A link without anybody at the other end: what it would hold, it holds, and what it would receive has no data."""

    def __init__(self, wiring: Wiring, autocast: torch.dtype | None, device: torch.device, allowed: int) -> None:
        self.wiring = wiring
        self.autocast = autocast
        self.device = device
        self.allowed = allowed
        self.awaited: dict[tuple[Op, int | None], deque[tuple[int, int]]] = defaultdict(deque)
        self.posted: dict[tuple[Op, int | None], deque[Tensor]] = defaultdict(deque)
        self.sent: dict[tuple[Op, int | None], deque[Tensor]] = defaultdict(lambda: deque(maxlen=allowed))
        self.sums: dict[tuple[Op, int, int | None], Tensor] = {}

    def begin(self, number: int, batch: Batch, parts: Sequence[Batch], programme: Schedule, *, training: bool) -> None:
        for action in sorted(programme, key=lambda action: action.late):
            if action.op in RECEIVES:
                self.awaited[action.op, action.peer].append((action.segment, len(parts[action.microbatch].inputs)))
                self._post((action.op, action.peer))

    def _post(self, channel: tuple[Op, int | None]) -> None:
        while self.awaited[channel] and len(self.posted[channel]) < self.allowed:
            segment, samples = self.awaited[channel].popleft()
            shape, dtype = self.wiring.message_shape(segment, samples, output=channel[0] is Op.RECV_F)
            if self.autocast and dtype.is_floating_point:
                dtype = self.autocast
            self.posted[channel].append(torch.empty(shape, dtype=dtype, device=self.device))

    def send(self, action: Action, tensor: Tensor, samples: int) -> None:
        self.sent[action.op, action.peer].append(tensor)

    def receive(self, action: Action) -> Tensor:
        tensor = self.posted[action.op, action.peer].popleft()
        self._post((action.op, action.peer))
        return tensor

    def reduce(self, action: Action, gradients: list[Tensor]) -> None:
        if gradients:
            self.sums[REDUCES[action.op], action.segment, action.flow] = torch.cat(
                [gradient.reshape(-1) for gradient in gradients]
            )

    def reduced(self, action: Action) -> None:
        self.sums.pop((action.op, action.segment, action.flow), None)


def _twin(engine: Engine, shared: list[Optimizer], fakes: _Fakes, part: Part | None) -> tuple[Engine, list[Optimizer]]:
    """A copy of the engine and all that it works on, on fake tensors."""
    modules = (engine.model, engine.wiring.heads, engine.wiring.encoders)
    optimizers = [*engine.optimizers.all(), *shared]
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            fakes.of(tensor)
    for optimizer in optimizers:
        for tensor in (*_state_tensors(optimizer), *(p for group in optimizer.param_groups for p in group["params"])):
            fakes.of(tensor)
    (model, heads, encoders), copied, outside = copy.deepcopy((modules, engine.optimizers.made, shared), fakes.memo)
    wiring = replace(engine.wiring, heads=heads, encoders=encoders)
    if part is None and engine.link is not None:
        part = Part(engine.stage, engine.schedule, engine.link.allowed)
    if part is not None:
        release(wiring, part.stage, model)
        copied = {step: optimizer for step, optimizer in copied.items() if step.segment in part.stage.segments}
    twin = Engine(
        model,
        wiring,
        part.schedule if part else engine.schedule,
        Optimizers(copied),
        device=engine.device,
        autocast=engine.autocast,
        stage=part.stage if part else None,
        link=_Echo(wiring, engine.autocast, engine.device, part.allowed) if part else None,
    )
    if twin.rerun is not None:
        twin.rerun.unproven.clear()  # fake tensors have no values to compare
    return twin, outside
