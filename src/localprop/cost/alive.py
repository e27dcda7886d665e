"""Which values of a step are alive after each action, and how many bytes they hold.

Bytes belong to storages, and values hold them: the output of a segment, what losses see of it and
the leaf of the next segment are often views of one storage. So a storage counts once, for the first
of its holders in the order of the schedule; the others are listed without bytes of their own. All
that is alive between two actions of a step is

    store + graphs + `.grad` of parameters + losses + frames

where frames are what Python's own frames hold while a hook runs: the input and the output of the
module that ends a segment, until the network's forward goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.optim import Optimizer

from localprop.cost.fake_engine import list_held_tensors
from localprop.cost.memory import (
    LiveBytes,
    MemoryReading,
    ModulePeaks,
    storages_of,
    watch_fake_step,
)
from localprop.engine.engine import Engine
from localprop.engine.loss import Losses
from localprop.errors import StepFailed
from localprop.network.layers import LayerEnd
from localprop.network.outputs import list_tensors
from localprop.schedule.schedule import Action, Op
from localprop.schedule.values import Kind, Value
from localprop.tasks.batch import Batch


class ActionReading(NamedTuple):
    """What is alive at one action of a step.

    Attributes:
        action: the action.
        peak_bytes: the most bytes alive at once while it ran: weights, optimizer state and batch,
            too.
        values: the bytes that each value holds after it; 0 where another value holds the storage.
    """

    action: Action
    peak_bytes: int
    values: dict[Value, int]


class ValueReading(NamedTuple):
    """What is alive in a step, action by action.

    Attributes:
        memory: the peak of the step and of each local module.
        actions: in the order in which they run.
    """

    memory: MemoryReading
    actions: list[ActionReading]

    @property
    def peak(self) -> ActionReading:
        """The action at which most is alive."""
        return max(self.actions, key=lambda reading: reading.peak_bytes)

    def before(self, reading: ActionReading) -> dict[Value, int]:
        """The values that are alive when an action begins."""
        place = self.actions.index(reading)
        return self.actions[place - 1].values if place else {}


def read_values(engine: Engine, optimizers: Iterable[Optimizer], batch: Batch) -> ValueReading:
    """Predict which values are alive after each action, by running the engine on fake tensors.

    Args:
        engine: its model, heads and optimizers hold fakes meanwhile, and are then as before.
        optimizers: those that the caller steps after the engine's step.
        batch: only its shapes and dtypes are used.
    """
    watcher, resting = watch_fake_step(engine, optimizers, batch, None, _ValueWatcher)
    return ValueReading(watcher.peaks.read(resting), watcher.readings)


class _ValueWatcher:
    def __init__(self, engine: Engine, live: LiveBytes) -> None:
        self.readings: list[ActionReading] = []
        self.peaks = ModulePeaks(engine, live)
        self._engine, self._held = engine, live.keys()
        self._running: Action | None = None

    def observe(self, action: Action) -> None:
        self.end_action()
        self.peaks.begin(action)
        self._running = action

    def end_action(self) -> None:
        peak = self.peaks.end_action()
        if self._running is not None:
            values = measure_values(self._engine, self._held)
            self.readings.append(ActionReading(self._running, peak, values))


def measure_values(engine: Engine, held: set[int]) -> dict[Value, int]:
    """The bytes that each value in the engine's stores holds, each storage counted once.

    Args:
        engine: in the middle of a step.
        held: the storages that live between steps, which are nobody's.
    """
    counted, found = set(held), dict[Value, int]()
    for value, kept in engine.list_values():
        found[value] = 0
        for storage in find_storages(engine, kept):
            if storage._cdata not in counted:
                counted.add(storage._cdata)
                found[value] += storage.nbytes()
    return found


def find_storages(engine: Engine, kept: Any) -> Iterator[torch.UntypedStorage]:
    """The storages that an entry of a store holds: a tensor, its graph, or a list of them."""
    if isinstance(kept, Tensor):
        yield from storages_of(kept)
        if kept.grad_fn is None:
            return
        if engine.saving is None:
            yield from _find_saved(kept.grad_fn)
            return
        # A look at what was dropped would run layers again, or bring it from the host.
        with engine.saving.peeking() as chains:
            yield from _find_saved(kept.grad_fn)
        for tensor in (tensor for chain in chains for tensor in chain.list_tensors()):
            yield from storages_of(tensor)
    elif isinstance(kept, list):
        for each in kept:
            yield from find_storages(engine, each)


def _find_saved(start: Node) -> Iterator[torch.UntypedStorage]:
    """The storages of all tensors that the nodes behind a node have saved."""
    nodes, seen = [start], {start}
    while nodes:
        node = nodes.pop()
        for tensor in _list_saved(node):
            yield from storages_of(tensor)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)


def _list_saved(node: Node) -> Iterator[Tensor]:
    """The tensors that a node has saved; none once its backward has freed them."""
    for name in dir(node):
        if name.startswith("_saved_"):
            try:
                saved = getattr(node, name)
            except RuntimeError:  # freed
                continue
            for tensor in saved if isinstance(saved, (tuple, list)) else [saved]:
                if isinstance(tensor, Tensor):
                    yield tensor


# --- debugging ----------------------------------------------------------------------------------


def check_values(engine: Engine, batch: Batch, *, number: int = 0) -> Losses:
    """Run a training step and check after each action that only what the plan lists is alive.

    It is slow, and meant for debugging: of a model whose own forward keeps tensors, or of the
    engine. Models hold tensors in frames of their own, as `nn.Sequential` does with its current
    input; only those of the modules that end segments are known here.

    Args:
        engine: of one process, after a first step, so that optimizer state exists.
        batch: inputs and targets on the model's device.
        number: the number of the step.

    Raises:
        AssertionError: the store differs from the plan, or a tensor is alive that nothing on the
            plan holds; says after which action.
    """
    modules = (engine.model, engine.wiring.heads, engine.wiring.encoders)
    held = list_held_tensors(modules, engine.optimizers.all(), batch)
    if engine.recompute is not None:
        engine.recompute.compare_all()
    with LiveBytes([*held, engine.plan.scalar]) as live:
        checker = _Checker(engine, live)
        with checker.watching_frames():
            try:
                losses = engine.step(batch, number=number, observe=checker.observe)
            except StepFailed:
                if checker.problem is None:
                    raise
                raise AssertionError(checker.problem) from None
            checker.end_action(losses)
    return losses


class _Checker:
    """Compares what is alive with the plan, after each action.

    Attributes:
        problem: the first difference; the engine reports what an observer raises as its own.
    """

    def __init__(self, engine: Engine, live: LiveBytes) -> None:
        self._engine, self._live, self._held = engine, live, live.keys()
        self._planned = dict(engine.plan.liveness.alive())
        self.problem: str | None = None
        self._running: Action | None = None
        self._frames: set[int] = set()

    def watching_frames(self) -> _Frames:
        """A context in which frames are known."""
        return _Frames(self._engine, self._frames)

    def observe(self, action: Action) -> None:
        self.end_action()
        self._running = action
        if action.op is Op.F:
            self._frames.clear()

    def end_action(self, losses: Iterable[Tensor] = ()) -> None:
        if self._running is None:
            return
        stored = self._engine.list_values()
        self._compare_store({value for value, _ in stored})
        known = self._held | self._frames
        for _, kept in stored:
            known |= {storage._cdata for storage in find_storages(self._engine, kept)}
        for tensor in (*self._list_sums(), *losses):
            known.add(tensor.untyped_storage()._cdata)
        stray = self._live.keys() - known
        if stray:
            self._fail(f"{len(stray)} tensor(s) that nothing on the plan holds")

    def _compare_store(self, stored: set[Value]) -> None:
        planned = set(self._planned.get(self._running, ())) if self._running else set()
        strange = {v for v in stored if v.kind is not Kind.WEIGHT_GRADIENT} - planned
        if strange:
            self._fail(f"{_join(strange)} should be dead")
        missing = {value for value in planned - stored if not _may_be_absent(value, stored)}
        if missing:
            self._fail(f"{_join(missing)} should be alive")

    def _fail(self, difference: str) -> NoReturn:
        self.problem = f"after {self._running}: {difference}"
        raise AssertionError(self.problem)

    def _list_sums(self) -> Iterator[Tensor]:
        """`.grad` of parameters, the losses so far, and what is kept to take the step back."""
        engine = self._engine
        for module in (engine.model, engine.wiring.heads, engine.wiring.encoders):
            for parameter in module.parameters():
                if parameter.grad is not None:
                    yield parameter.grad
        yield from engine.list_losses()
        yield from engine.undo.list_copies() if engine.undo else ()


def _may_be_absent(value: Value, stored: set[Value]) -> bool:
    """Parts that are added up already, gradients that no loss left, and outputs, which a hook hands
    over.
    """
    # Parts of a flow's gradient are added up, and those that several flows have kept.
    same = {Kind.GRADIENT: 3, Kind.KEPT_GRADIENT: 2}.get(value.kind)
    if same is not None:
        return any(v[:same] == value[:same] and v.microbatch == value.microbatch for v in stored)
    return value.kind in (Kind.TAP_GRADIENT, Kind.TAP_EDGE, Kind.CARRIED, Kind.OUTPUT)


class _Frames:
    """Notes what the frames of the modules hold whose hooks end segments: all but the last."""

    def __init__(self, engine: Engine, keys: set[int]) -> None:
        self._engine, self._keys = engine, keys
        self._hooks = engine.hooks

    def __enter__(self) -> None:
        # The engine's own hooks come first on a module, so what is noted must come within them.
        engine = self._engine
        names = [engine.wiring.end_name(s) for s in engine.stage.segments[:-1]]
        ends = {engine.model.get_submodule(LayerEnd.parse(name).module) for name in names}
        engine.hooks = [
            (module, partial(self._note, hook) if module in ends else hook)
            for module, hook in self._hooks
        ]

    def __exit__(self, *_: object) -> None:
        self._engine.hooks = self._hooks

    def _note(
        self, hook: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], output: Any
    ) -> Any:
        for tensor in (*args, *list_tensors(output)):
            if isinstance(tensor, Tensor):
                self._keys.add(tensor.untyped_storage()._cdata)
        return hook(module, args, output)


def _join(values: set[Value]) -> str:
    return ", ".join(sorted(map(str, values)))
