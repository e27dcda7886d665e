"""What one layer costs in the step of an engine whose segments are single layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from localprop.cost.alive import find_storages
from localprop.cost.fake_engine import FakeEngine
from localprop.cost.flops import FlopCounter
from localprop.cost.memory import LiveBytes, storages_of
from localprop.schedule.schedule import Action, Op
from localprop.schedule.values import Kind, Value
from localprop.schedule.wiring import Wiring


class ForwardCost(NamedTuple):
    """The forward of a layer, in bytes.

    Attributes:
        peak: more than at its beginning, at most.
        kept: held by its graph, without its input and its output.
        keeps_input: whether the graph holds the input.
        keeps_output: whether it holds the output.
        flops: operations.
    """

    peak: int
    kept: int
    keeps_input: bool
    keeps_output: bool
    flops: int


class BackwardCost(NamedTuple):
    """The backward of a layer: bytes more than at its beginning, at most, and operations."""

    peak: int
    flops: int


class LossCost(NamedTuple):
    """A loss with its head, in bytes.

    Attributes:
        peak: more than at its beginning, at most.
        gradients: of the head's parameters.
        held: its parameters and buffers, and the state of their optimizer.
        step_peak: while the optimizer steps.
        flops: operations.
    """

    peak: int
    gradients: int
    held: int
    step_peak: int
    flops: int


class Frames(NamedTuple):
    """What Python's frames hold at a moment of the forward.

    Attributes:
        outputs: the layers whose outputs they hold.
        others: bytes of other tensors.
    """

    outputs: frozenset[int] = frozenset()
    others: int = 0


@dataclass
class LayerReading:
    """One layer, in the step of one engine.

    Attributes:
        output: bytes of what it returns.
        forward: its forward.
        backwards: by the number of its flow.
        loss: of the loss at its end.
        gradients: bytes of the gradients of its parameters.
        step_peak: bytes more while its optimizer steps.
        at_start: what frames hold while the layer runs.
        at_end: what they hold while the actions after it run.
    """

    output: int = 0
    forward: ForwardCost = field(default_factory=lambda: ForwardCost(0, 0, False, False, 0))
    backwards: dict[int, BackwardCost] = field(default_factory=dict)
    loss: LossCost = field(default_factory=lambda: LossCost(0, 0, 0, 0, 0))
    gradients: int = 0
    step_peak: int = 0
    at_start: Frames = field(default_factory=Frames)
    at_end: Frames = field(default_factory=Frames)


class Meter(LiveBytes):  # type: ignore[no-untyped-call]
    """Live bytes, and a look at the level right before the next operation."""

    def __init__(self, held: Sequence[Tensor]) -> None:
        super().__init__(held)
        self.at_next: Callable[[], None] | None = None
        self.outputs: dict[int, int] = {}  # by storage, the layer whose output lives there

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        look, self.at_next = self.at_next, None
        if look is not None:
            look()
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _forget(self, key: int, nbytes: int) -> None:
        super()._forget(key, nbytes)
        self.outputs.pop(key, None)


class LayerWatcher:
    """Reads a step whose segments are single layers, action by action.

    Args:
        fake: runs the step.
        live: counts its bytes.
        flops: counts its operations.
        holding: whether to hold each layer's output until its backward has run.
        frames: whether to find what frames hold, for which all graphs are walked.
    """

    def __init__(
        self, fake: FakeEngine, live: Meter, flops: FlopCounter, *, holding: bool, frames: bool
    ) -> None:
        self._holding, self._kept = holding, dict[int, Tensor]()
        self._finds_frames = frames
        self._engine, self._live, self._flops = fake.engine, live, flops
        self._wiring: Wiring = fake.engine.wiring
        self.readings = [LayerReading() for _ in self._wiring.layers.names]
        self.resting, self._held = live.current, live.keys()
        named = dict(fake.engine.model.named_parameters())
        self._parameters = {
            s: self._wiring.parameters_trained_by(named, s, s)
            for s in range(len(self._wiring.segments))
        }
        self._saved: dict[int, dict[int, int]] = {}  # bytes of each storage, by layer
        self._running: Action | None = None
        self._begin = self._begin_flops = 0

    def observe(self, action: Action) -> None:
        """End the action that runs, and begin the next one."""
        self.end_action()
        self._running = action
        self._live.reset_peak()
        self._begin, self._begin_flops = self._live.current, self._flops.total
        if action.op is Op.F:
            if action.segment:
                # All actions have run, and the forward has not yet gone on.
                self.readings[action.segment - 1].at_end = self._find_frames(action.segment - 1)
            self._live.at_next = lambda: self._look_at_start(action.segment)

    def end_action(self) -> None:
        """End the action that runs."""
        action = self._running
        if action is None:
            return
        peak, flops = self._live.peak - self._begin, self._flops.total - self._begin_flops
        reading = self.readings[action.segment]
        if action.op is Op.F:
            self._end_forward(action.segment, peak, flops)
        elif action.op is Op.B:
            self._kept.pop(action.segment, None)
            reading.backwards[action.flow or 0] = BackwardCost(peak, flops)
            reading.gradients = _count_bytes(
                p.grad for p in self._parameters[action.segment] if p.grad is not None
            )
        elif action.op is Op.L:
            self._end_loss(action, peak, flops)
        elif action.op is Op.S:
            reading.step_peak = peak
        elif action.op is Op.H:
            reading.loss = reading.loss._replace(step_peak=peak)

    def _look_at_start(self, layer: int) -> None:
        self.readings[layer].at_start = self._find_frames(layer - 1)
        self._live.reset_peak()
        self._begin = self._live.current

    def _find_frames(self, last: int) -> Frames:
        """What is alive and no value of the store holds, but for the output of the last layer."""
        if not self._finds_frames:
            return Frames()
        known = self._live.keys()
        valued = set(self._held)
        for _, kept in self._engine.list_values():
            valued |= {storage._cdata for storage in find_storages(self._engine, kept)}
        for parameters in self._parameters.values():
            for p in parameters:
                if p.grad is not None:
                    valued |= {storage._cdata for storage in storages_of(p.grad)}
        for loss in self._engine.list_losses():
            valued |= {storage._cdata for storage in storages_of(loss)}
        free, outputs = known - valued, self._live.outputs
        held = frozenset(outputs[key] for key in free if key in outputs)
        others = sum(self._live.sizes[key] for key in free if key not in outputs)
        return Frames(held - {last}, others)

    def _end_forward(self, layer: int, peak: int, flops: int) -> None:
        store = dict(self._engine.list_values())
        graph = store.get(Value(Kind.GRAPH, layer))
        found = [] if graph is None else find_storages(self._engine, graph)
        self._saved[layer] = {s._cdata: s.nbytes() for s in found if s._cdata not in self._held}
        self.readings[layer].forward = ForwardCost(peak, 0, False, False, flops)
        if layer and Value(Kind.LEAF, layer) in store:
            # What only goes on is in no store before it is the next layer's leaf.
            self._note_output(layer - 1, store[Value(Kind.LEAF, layer)])
        if Value(Kind.FEATURES, layer) in store:
            self._note_output(layer, store[Value(Kind.FEATURES, layer)])

    def _note_output(self, layer: int, output: Tensor) -> None:
        (storage,) = storages_of(output)
        own = storage._cdata
        if self._holding:
            self._kept[layer] = output.detach()
        self._live.outputs[own] = layer
        before = next((key for key, i in self._live.outputs.items() if i == layer - 1), None)
        saved, reading = self._saved[layer], self.readings[layer]
        reading.output = storage.nbytes()
        reading.forward = reading.forward._replace(
            kept=sum(nbytes for key, nbytes in saved.items() if key not in {own, before}),
            keeps_input=before in saved,
            keeps_output=own in saved,
        )

    def _end_loss(self, action: Action, peak: int, flops: int) -> None:
        head = self._wiring.head(self._wiring.objective_at(action.segment, action.flow))
        gradients = _count_bytes(p.grad for p in head.parameters() if p.grad is not None)
        held = _count_bytes([*head.parameters(), *head.buffers()])
        optimizer = self._engine.optimizers.by_action.get(Action(Op.H, action.segment, action.flow))
        if optimizer is not None:
            held += _count_bytes(_list_state(optimizer))
        self.readings[action.segment].loss = LossCost(peak, gradients, held, 0, flops)


def _list_state(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _count_bytes(tensors: Any) -> int:
    """The bytes of the storages of some tensors, each counted once."""
    sizes = {s._cdata: s.nbytes() for tensor in tensors for s in storages_of(tensor)}
    return sum(sizes.values())
