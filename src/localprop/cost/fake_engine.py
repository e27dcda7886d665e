"""An engine on fake tensors, which have shapes, dtypes and lifetimes, but no data.

Model, heads and optimizers are the user's own. For the time of a prediction, fakes stand in the
places of all their tensors.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from localprop.cost.counted_host import imitate
from localprop.cost.kernels import run_operation
from localprop.cost.stand_ins import StandIns
from localprop.engine.engine import Engine
from localprop.engine.optimizers import Optimizers
from localprop.errors import BadInput, StepFailed
from localprop.network.fake_tensors import VALUES_READ
from localprop.schedule.schedule import RECEIVES, REDUCES, Action, Op, Schedule
from localprop.schedule.stage import Stage, list_idle, released
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch


class FakeEngine(NamedTuple):
    """An engine whose model, heads, optimizers and batch are fake.

    Attributes:
        engine: runs on the user's modules, which hold fakes meanwhile.
        optimizers: those that the caller steps after the engine's step.
        batch: fake inputs and targets.
    """

    engine: Engine
    optimizers: list[Optimizer]
    batch: Batch

    def step(self, observe: Callable[[Action], object] | None = None) -> None:
        """Run a whole training step.

        Raises:
            BadInput: the model or an optimizer reads values of tensors, or does not run on fakes.
        """
        undo = self.engine.undo
        with self.engine.undoing():
            try:
                losses = self.engine.step(self.batch, observe=observe)
            except StepFailed as error:
                raise _refuse(self.engine.model, error.__cause__) from error
            for optimizer in self.optimizers:
                if undo is not None:
                    undo.keep_optimizer(optimizer)
                try:
                    optimizer.step()
                except Exception as error:  # of users: 8-bit optimizers have tensors of their own
                    raise _refuse(optimizer, error) from error
                optimizer.zero_grad(set_to_none=True)
            del losses  # they live as long as the step that returns them

    def list_held(self) -> list[Tensor]:
        """List the tensors that live between steps."""
        engine = self.engine
        modules = (engine.model, engine.wiring.heads, engine.wiring.encoders)
        optimizers = [*self.optimizers, *engine.optimizers.all()]
        return [*list_held_tensors(modules, optimizers, self.batch), engine.plan.scalar]


def _refuse(part: object, cause: BaseException | None) -> BadInput:
    reason = f"fails on them ({type(cause).__name__}: {cause})"
    if isinstance(cause, VALUES_READ):
        reason = "reads values, so that what it computes may differ from batch to batch"
    return BadInput(
        f"A prediction runs on tensors without values, but {type(part).__name__} {reason}: measure "
        "a step instead, as with torch.cuda.max_memory_allocated()."
    )


@contextmanager
def faked(
    engine: Engine,
    optimizers: Iterable[Optimizer],
    batch: Batch,
    rank_slice: RankSlice | None = None,
) -> Iterator[FakeEngine]:
    """Within the context all tensors that an engine works on are fakes, and so are new ones.

    Afterwards, and after a failure, everything is as it was. Nobody else may use the model
    meanwhile.

    Args:
        engine: a new engine is made of its parts.
        optimizers: those that the caller steps after the engine's step.
        batch: only its shapes and dtypes are used.
        rank_slice: what a rank runs of the step, if not all that the engine runs.
    """
    outside, model, wiring = list(optimizers), engine.model, engine.wiring
    if rank_slice is None and engine.communicator is not None:
        rank_slice = RankSlice(engine.stage, engine.schedule, engine.communicator.max_in_flight)
    stage = rank_slice.stage if rank_slice else engine.stage
    own = Optimizers(
        {
            step: optimizer
            for step, optimizer in engine.optimizers.by_action.items()
            if step.segment in stage.segments
        }
    )
    mode = FakeTensorMode()
    # What a rank never runs stays as it is: there is much of it where there are many ranks.
    stand_ins = StandIns(_FakeMaker(mode, values=True), list_idle(wiring, stage, model))
    with (
        released(wiring, stage, model),
        stand_ins.placed(model, wiring.heads, wiring.encoders, own.all(), outside),
        torch.compiler.set_stance("force_eager"),
        mode,
        _Corrections(mode, stand_ins),
    ):
        fake_batch = batch.map(_FakeMaker(mode, values=False))
        yield FakeEngine(_make_engine(engine, rank_slice, own), outside, fake_batch)


def list_held_tensors(
    modules: Iterable[nn.Module], optimizers: Iterable[Optimizer], batch: Batch
) -> list[Tensor]:
    """List the tensors that live between steps: parameters, buffers and other tensors among the
    attributes of modules, optimizer state, and batch.
    """
    weights = [
        tensor
        for module in modules
        for each in module.modules()
        for tensor in _list_tensors(list(vars(each).values()))
    ]
    states = [tensor for each in optimizers for tensor in _list_tensors(each.state)]
    return [*weights, *states, *batch.tensors]


def _list_tensors(value: object) -> Iterator[Tensor]:
    """The tensors in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _list_tensors(entry)


class _FakeMaker:
    """Makes the fake of a tensor.

    Args:
        mode: of the fakes.
        values: whether those of one element have a value.
    """

    def __init__(self, mode: FakeTensorMode, *, values: bool) -> None:
        self._mode, self._values = mode, values

    def __call__(self, tensor: Tensor) -> Tensor:
        try:
            fake = self._convert(tensor.detach())
        except UnsupportedFakeTensorException:  # quantized: it fails where it is used, if it is
            return tensor
        if isinstance(tensor, nn.Parameter):
            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
        elif tensor.is_leaf:  # others are features that the model has kept, with their graph
            fake.requires_grad_(tensor.requires_grad)
        vars(fake).update(vars(tensor))
        return fake

    def _convert(self, tensor: Tensor) -> Tensor:
        converter = self._mode.fake_tensor_converter
        if tensor.is_meta:  # as for the same model on the CPU
            return converter.from_meta_and_device(self._mode, tensor, torch.device("cpu"))
        if self._values and tensor.numel() == 1 and tensor.layout is torch.strided:
            # Its value stays known until something unknown is written into it. Code that reads
            # values reads counters: Adam's of its steps, BatchNorm's of the batches. torch supports
            # such constants of one element only.
            return converter.from_real_tensor(self._mode, tensor.clone(), make_constant=True)
        return self._mode.from_tensor(tensor, static_shapes=True)


class _Corrections(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What a FakeTensorMode lacks; a context manager inside it.

    Tensors that no root has led to, such as globals, get stand-ins where an operation meets them:
    the mode itself might write to them. And outputs are as large as those of the real kernels.
    """

    def __init__(self, mode: FakeTensorMode, stand_ins: StandIns) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode, self._stand_ins = mode, stand_ins

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # Numbers become tensors by `lift_fresh`. They are new, and torch keeps their values.
        if func is not torch.ops.aten.lift_fresh.default and not _are_fake(args, kwargs):
            args, kwargs = tree_map_only(Tensor, self._stand_ins.of, (args, kwargs))
        if func is torch.ops.aten.set_.source_Storage_storage_offset:
            with mock.patch.object(self._mode, "cache_enabled", False):  # it would keep the storage
                return func(*args, **kwargs)
        return run_operation(func, args, kwargs)


def _are_fake(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether all tensors among the arguments of an operation are; quick, as most are."""
    for arg in (*args, *kwargs.values()):
        for each in arg if isinstance(arg, (list, tuple)) else (arg,):
            if isinstance(each, Tensor) and not isinstance(each, FakeTensor):
                return False
    return True


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
        self.posted: dict[tuple[Op, int | None], deque[list[Tensor | None]]] = defaultdict(deque)
        self.sent: dict[tuple[Op, int | None], deque[Sequence[Tensor | None]]] = defaultdict(
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
                samples = parts[action.microbatch].samples
                self.pending[channel].append((action.segment, samples))
                self._post_receives(channel)

    def _post_receives(self, channel: tuple[Op, int | None]) -> None:
        op, _ = channel
        pending, posted = self.pending[channel], self.posted[channel]
        while pending and len(posted) < self.max_in_flight:
            segment, samples = pending.popleft()
            shapes = self.wiring.message_shapes(segment, samples, output=op is Op.RECV_F)
            posted.append([self._allocate(shape, dtype) for shape, dtype in shapes])

    def _allocate(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if self.autocast and dtype.is_floating_point:
            dtype = self.autocast
        return torch.empty(shape, dtype=dtype, device=self.device)

    def send(self, action: Action, tensors: Sequence[Tensor | None], batch: Batch) -> None:
        self.sent[action.op, action.peer].append(tensors)

    def receive(self, action: Action, count: int) -> list[Tensor | None]:
        channel = (action.op, action.peer)
        tensors = self.posted[channel].popleft()
        self._post_receives(channel)
        return tensors

    def start_reduce(self, action: Action, gradients: list[Tensor]) -> None:
        if gradients:
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            self.sums[REDUCES[action.op], action.segment, action.flow] = flat

    def finish_reduce(self, action: Action) -> None:
        self.sums.pop((action.op, action.segment, action.flow), None)


def _make_engine(engine: Engine, rank_slice: RankSlice | None, optimizers: Optimizers) -> Engine:
    """An engine of the same parts, which hold fakes."""
    device = torch.device("cpu") if engine.device.type == "meta" else engine.device
    communicator = None
    if rank_slice is not None:
        communicator = NullCommunicator(
            engine.wiring, engine.autocast, device, rank_slice.max_in_flight
        )
    fake = Engine(
        engine.model,
        engine.wiring,
        rank_slice.schedule if rank_slice else engine.schedule,
        optimizers,
        device=device,
        autocast=engine.autocast,
        stage=rank_slice.stage if rank_slice else None,
        communicator=communicator,
        recomputed=engine.recomputed,
        host=None if engine.offload is None else imitate(engine.offload.host),
        checks_numbers=engine.checks_numbers,
    )
    if fake.recompute is not None:
        fake.recompute.trust()
    return fake
