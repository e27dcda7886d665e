"""Measured seconds of actions, and bytes and seconds of messages.

::

    engine, batch ──measure_seconds──► Seconds ─┐
    wiring ──────────► message_bytes ───────────┼──simulate──► Timeline
    rank schedules, LinkModel ──────────────────┘

`localprop.cost.simulate` has the second half.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch

from localprop.engine.engine import Engine
from localprop.errors import check
from localprop.schedule.schedule import REDUCES, SENDS, Action, ActionCost, Op
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch

_PER_BATCH = (Op.H, Op.S, Op.P)  # other actions run once for each micro-batch


# --- seconds of actions --------------------------------------------------------------------------


class ActionKind(NamedTuple):
    """What the seconds of an action depend on: all but its micro-batch."""

    op: Op
    segment: int
    flow: int | None

    @classmethod
    def of(cls, action: Action) -> ActionKind:
        """The kind of an action."""
        return cls(action.op, action.segment, action.flow)


@dataclass(frozen=True)
class Seconds:
    """The seconds of each action; call it with one. Messages cost their ranks nothing.

    Attributes:
        by_kind: the seconds; those of F, L and B are for one micro-batch.
        samples: of that micro-batch.

    Example:
        >>> by_kind = {ActionKind(Op.F, 0, None): 0.5, ActionKind(Op.S, 0, None): 0.1}
        >>> seconds = Seconds(by_kind, samples=32)
        >>> seconds(Action(Op.F, 0)), seconds(Action(Op.S, 0))
        (0.5, 0.1)
        >>> larger = seconds.scaled(64)
        >>> larger(Action(Op.F, 0)), larger(Action(Op.S, 0))
        (1.0, 0.1)
    """

    by_kind: Mapping[ActionKind, float]
    samples: int

    def __call__(self, action: Action) -> float:
        return self.by_kind.get(ActionKind.of(action), 0.0)

    def scaled(self, samples: int) -> Seconds:
        """The seconds of a micro-batch of another size.

        This is an assumption, not a measurement: the seconds of forwards, losses and backwards
        grow in proportion to the samples, and those of steps stay. Small micro-batches on a fast
        device take longer than that.
        """
        factor = samples / self.samples
        by_kind = {
            kind: seconds if kind.op in _PER_BATCH else seconds * factor
            for kind, seconds in self.by_kind.items()
        }
        return Seconds(by_kind, samples)

    def per_segment(self, wiring: Wiring, microbatches: int = 1) -> list[float]:
        """The seconds of each segment in a whole step.

        With one layer in each segment they are those of the layers.
        """
        totals = [0.0] * len(wiring.segments)
        for kind, seconds in self.by_kind.items():
            runs = 1 if kind.op in _PER_BATCH else microbatches
            totals[kind.segment] += seconds * runs
        return totals

    def per_module(self, wiring: Wiring, microbatches: int = 1) -> list[float]:
        """The seconds of each local module in a whole step, with its head.

        A placement balances them over the stages.
        """
        totals = [0.0] * len(wiring.table.sizes)
        segment_seconds = self.per_segment(wiring, microbatches)
        for segment, seconds in zip(wiring.segments, segment_seconds, strict=True):
            totals[segment.module] += seconds
        return totals


def measure_seconds(
    engine: Engine, batch: Batch, rounds: int = 3, clock: Callable[[], float] | None = None
) -> Seconds:
    """Time every action of real training steps; medians over micro-batches and rounds.

    A first step is not counted.

    Args:
        engine: of one process. A copy of it trains; it and its model stay as they are.
        batch: one micro-batch for each of the engine's.
        rounds: the number of steps.
        clock: returns the time in seconds. By default it waits until the device is idle.

    Raises:
        BadInput: no rounds.

    Example:
        >>> batch = Batch.of((images[:16].float() / 255, labels[:16]))
        >>> seconds = measure_seconds(learner.engine, batch, rounds=1)
        >>> seconds(learner.schedule[0]) > 0
        True
    """
    check([f"rounds={rounds} must be 1 or more."] if rounds < 1 else [])
    stopwatch = Stopwatch(copy_engine(engine), batch, clock)
    for _ in range(rounds):
        stopwatch.time_round()
    return stopwatch.seconds()


class Stopwatch:
    """Times the actions of an engine, round by round, so that several can take turns.

    Args:
        engine: of one process. It trains.
        batch: one micro-batch for each of the engine's.
        clock: as in `measure_seconds`.
    """

    def __init__(
        self, engine: Engine, batch: Batch, clock: Callable[[], float] | None = None
    ) -> None:
        self._engine = engine
        self._batch = batch
        self._clock = clock or (lambda: read_clock(engine.device))
        self._spent: dict[ActionKind, list[float]] = defaultdict(list)
        self._microbatches = 1 + max(action.microbatch for action in engine.schedule)
        self._engine.step(batch)  # creates the optimizer states, and lets torch choose kernels

    def time_round(self) -> None:
        """Time the actions of one step, each from its start to the start of the next one."""
        starts: list[tuple[Action | None, float]] = []
        self._engine.step(
            self._batch, observe=lambda action: starts.append((action, self._clock()))
        )
        starts.append((None, self._clock()))
        for (action, start), (_, end) in pairwise(starts):
            assert action is not None
            self._spent[ActionKind.of(action)].append(end - start)

    def seconds(self) -> Seconds:
        """The medians of all rounds so far."""
        medians = {kind: statistics.median(spent) for kind, spent in self._spent.items()}
        return Seconds(medians, self._batch.samples // self._microbatches)


def read_clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def copy_engine(engine: Engine) -> Engine:
    """Copy an engine and all that it works on, except for torch's default generators.

    The engine sets the state of those generators, and layers draw from them. A copy of a generator
    would be one that no layer draws from.
    """
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    generators = [torch.default_generator, *(torch.cuda.default_generators if started else ())]
    return copy.deepcopy(engine, {id(generator): generator for generator in generators})


# --- bytes and seconds of messages ---------------------------------------------------------------


@dataclass(frozen=True)
class LinkModel:
    """A link between two devices.

    Attributes:
        bytes_per_second: in each direction.
        latency_s: from the moment when the last byte leaves until it arrives.

    Example:
        >>> LinkModel(bytes_per_second=1e9, latency_s=0.5).seconds(2e9)
        2.5
    """

    bytes_per_second: float = math.inf
    latency_s: float = 0.0

    def seconds(self, nbytes: float) -> float:
        """The seconds of a message on a free link."""
        return nbytes / self.bytes_per_second + self.latency_s

    def ring_all_reduce(self, nbytes: float, replicas: int) -> AllReduceCost:
        """The cost of an all-reduce over n replicas in a ring.

        It takes 2 (n - 1) rounds. In each round every replica sends an n-th of the bytes to the
        next one.

        Example:
            >>> LinkModel(bytes_per_second=100.0, latency_s=1.0).ring_all_reduce(1000, replicas=4)
            AllReduceCost(sent_bytes=1500.0, seconds=21.0)

        Source: Patarasuk, Yuan, Bandwidth optimal all-reduce algorithms for clusters of
        workstations, JPDC 69(2), 2009.
        """
        rounds, chunk_bytes = 2 * (replicas - 1), nbytes / replicas
        return AllReduceCost(rounds * chunk_bytes, rounds * self.seconds(chunk_bytes))


class AllReduceCost(NamedTuple):
    """The bytes that an all-reduce makes one replica send, and its seconds."""

    sent_bytes: float
    seconds: float


def message_bytes(wiring: Wiring, samples: int) -> ActionCost:
    """Make a function of an action: the bytes that it sends or sums, 0 for other actions.

    Args:
        wiring: the network's shapes and dtypes.
        samples: of one micro-batch.
    """

    def count_bytes(action: Action) -> int:
        if action.op in SENDS:
            output = action.op is Op.SEND_F
            shapes = wiring.message_shapes(action.segment, samples, output=output)
            return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
        return _count_parameter_bytes(wiring, action) if action.op in REDUCES else 0

    return count_bytes


def _count_parameter_bytes(wiring: Wiring, action: Action) -> int:
    """Count the bytes of the parameters whose gradients an action sums over the replicas."""
    if action.op is Op.REDUCE_H:
        head = wiring.head(wiring.objective_at(action.segment, action.flow))
        return sum(p.numel() * p.itemsize for p in head.parameters())
    segment, encoders = wiring.segments[action.segment], wiring.encoders_at(action.segment)
    sizes = {
        name: size * wiring.layers.dtypes[layer].itemsize
        for layer in segment.layers
        for name, size in wiring.layers.sizes_of(layer)
    }
    encoder_parameters = encoders.parameters() if encoders else ()
    trained = sum(sizes[name] for name in segment.parameters)
    return trained + sum(p.numel() * p.itemsize for p in encoder_parameters)
