"""A copy of an engine on fake tensors, which have shapes, dtypes and lifetimes, but no data."""

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

from localprop.engine.engine import Engine
from localprop.engine.optimizers import Optimizers
from localprop.rule.local_loss import Batch
from localprop.schedule.schedule import RECEIVES, REDUCES, Action, Op, Schedule
from localprop.schedule.stage import Stage, release_parameters
from localprop.schedule.wiring import Wiring


class FakeEngine:
    """An engine, its model, heads, optimizers and a batch, all copied as fake tensors.

    The originals stay as they are. Use the copy inside `with fake.mode`.

    Args:
        engine: the engine to copy.
        optimizers: those that the caller steps after the engine's step.
        batch: only its shapes and dtypes are used.
        rank_slice: what a rank runs of the step, if not all that the engine runs.
    """

    def __init__(
        self,
        engine: Engine,
        optimizers: Iterable[Optimizer],
        batch: Batch,
        rank_slice: RankSlice | None = None,
    ) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=False)
        copies = _FakeCopies(self.mode)
        self.engine, self.optimizers = _copy_engine(engine, list(optimizers), copies, rank_slice)
        self.batch = Batch(copies.copy(batch.inputs), copies.copy(batch.targets))

    def step(self, observe: Callable[[Action], object] | None = None) -> None:
        """Run a whole training step."""
        self.engine.step(self.batch, observe=observe)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def list_held(self) -> list[Tensor]:
        """List the tensors that live between steps."""
        engine = self.engine
        modules = (engine.model, engine.wiring.heads, engine.wiring.encoders)
        optimizers = [*self.optimizers, *engine.optimizers.all()]
        return [*list_held_tensors(modules, optimizers, self.batch), engine.plan.scalar]


def list_held_tensors(
    modules: Iterable[nn.Module], optimizers: Iterable[Optimizer], batch: Batch
) -> list[Tensor]:
    """List the tensors that live between steps: parameters, buffers, optimizer state and batch."""
    weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    states = [tensor for optimizer in optimizers for tensor in _list_state(optimizer)]
    return [*weights, *states, *batch]


def _list_state(optimizer: Optimizer) -> list[Tensor]:
    return [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]


class _FakeCopies:
    """Fake copies of real tensors.

    Each tensor is copied once, so that layers which share a parameter still share it.

    Attributes:
        memo: the copies by the id of the real tensor, in the form that `copy.deepcopy` expects.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.memo: dict[int, Any] = {}

    def copy(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.memo:
            self.memo[id(tensor)] = self._make(tensor)
        fake: Tensor = self.memo[id(tensor)]
        return fake

    def _make(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            fake = self.mode.from_tensor(tensor.detach(), static_shapes=True)
            return nn.Parameter(fake, requires_grad=tensor.requires_grad)
        if tensor.ndim == 0:
            # Adam reads the value of its step counter. A fake tensor has a value if it was made
            # from a number inside the mode.
            value = tensor.item()
            with self.mode:
                return torch.tensor(value, dtype=tensor.dtype, device=tensor.device)
        return self.mode.from_tensor(tensor.detach(), static_shapes=True)


class RankSlice(NamedTuple):
    """What one rank runs of a step.

    Attributes:
        stage: its segments.
        schedule: its actions.
        max_in_flight: messages of one channel that may be sent but not yet delivered.
    """

    stage: Stage
    schedule: Schedule
    max_in_flight: int = 2


class NullCommunicator:
    """A communicator without peers, for predictions of memory.

    It holds the tensors that a real one would hold at the same time: sent ones until they are
    delivered, receive buffers from when they are posted, and sums over replicas. Received tensors
    have no data. It implements `localprop.engine.communicator`.
    """

    def __init__(
        self, wiring: Wiring, autocast: torch.dtype | None, device: torch.device, max_in_flight: int
    ) -> None:
        self.wiring = wiring
        self.autocast = autocast
        self.device = device
        self.max_in_flight = max_in_flight
        self.pending: dict[tuple[Op, int | None], deque[tuple[int, int]]] = defaultdict(deque)
        self.posted: dict[tuple[Op, int | None], deque[Tensor]] = defaultdict(deque)
        self.sent: dict[tuple[Op, int | None], deque[Tensor]] = defaultdict(
            lambda: deque(maxlen=max_in_flight)
        )
        self.sums: dict[tuple[Op, int, int | None], Tensor] = {}

    def begin(
        self,
        number: int,
        batch: Batch,
        parts: Sequence[Batch],
        rank_schedule: Schedule,
        *,
        training: bool,
    ) -> None:
        for action in sorted(rank_schedule, key=lambda action: action.deferred):
            if action.op in RECEIVES:
                channel = (action.op, action.peer)
                samples = len(parts[action.microbatch].inputs)
                self.pending[channel].append((action.segment, samples))
                self._post_receives(channel)

    def _post_receives(self, channel: tuple[Op, int | None]) -> None:
        op, _ = channel
        pending, posted = self.pending[channel], self.posted[channel]
        while pending and len(posted) < self.max_in_flight:
            segment, samples = pending.popleft()
            shape, dtype = self.wiring.message_shape(segment, samples, output=op is Op.RECV_F)
            if self.autocast and dtype.is_floating_point:
                dtype = self.autocast
            posted.append(torch.empty(shape, dtype=dtype, device=self.device))

    def send(self, action: Action, tensor: Tensor, samples: int) -> None:
        self.sent[action.op, action.peer].append(tensor)

    def receive(self, action: Action) -> Tensor:
        channel = (action.op, action.peer)
        tensor = self.posted[channel].popleft()
        self._post_receives(channel)
        return tensor

    def start_reduce(self, action: Action, gradients: list[Tensor]) -> None:
        if gradients:
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            self.sums[REDUCES[action.op], action.segment, action.flow] = flat

    def finish_reduce(self, action: Action) -> None:
        self.sums.pop((action.op, action.segment, action.flow), None)


def _copy_engine(
    engine: Engine, shared: list[Optimizer], copies: _FakeCopies, rank_slice: RankSlice | None
) -> tuple[Engine, list[Optimizer]]:
    """Copy an engine and all that it works on, and the optimizers that the caller steps."""
    modules = (engine.model, engine.wiring.heads, engine.wiring.encoders)
    _copy_tensors(modules, [*engine.optimizers.all(), *shared], copies)
    # One deepcopy for all, with the fake tensors as its memo: modules and optimizers of the copy
    # refer to the same fake parameters.
    (model, heads, encoders), by_action, shared_copies = copy.deepcopy(
        (modules, engine.optimizers.by_action, shared), copies.memo
    )
    wiring = replace(engine.wiring, heads=heads, encoders=encoders)
    if rank_slice is None and engine.communicator is not None:
        rank_slice = RankSlice(engine.stage, engine.schedule, engine.communicator.max_in_flight)
    stage, communicator = None, None
    if rank_slice is not None:
        stage = rank_slice.stage
        release_parameters(wiring, stage, model)
        by_action = {
            step: optimizer
            for step, optimizer in by_action.items()
            if step.segment in rank_slice.stage.segments
        }
        communicator = NullCommunicator(
            wiring, engine.autocast, engine.device, rank_slice.max_in_flight
        )
    with copies.mode:  # what the engine itself makes is fake, too
        fake = Engine(
            model,
            wiring,
            rank_slice.schedule if rank_slice else engine.schedule,
            Optimizers(by_action),
            device=engine.device,
            autocast=engine.autocast,
            stage=stage,
            communicator=communicator,
        )
    if fake.recompute is not None:
        fake.recompute.compare_nothing()  # fake tensors have no values
    return fake, shared_copies


def _copy_tensors(
    modules: Iterable[nn.Module], optimizers: Iterable[Optimizer], copies: _FakeCopies
) -> None:
    """Copy all tensors of modules and optimizers, so that `copies.memo` has them."""
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            copies.copy(tensor)
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for tensor in (*_list_state(optimizer), *parameters):
            copies.copy(tensor)
