"""Timing: what the actions of a schedule cost in seconds, measured; and what messages cost, by shapes and the wire's speed.

::

    engine, batch ──measure──► Seconds ─┐
    wiring ──────────► message_bytes ───┼──simulate──► Timeline     events, waits, seconds per step, idle shares, bytes
    programmes, Wire ───────────────────┘

:mod:`localprop.step.timeline` has the second half.
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

from localprop.errors import check
from localprop.rule.losses import Batch
from localprop.step.engine import Engine
from localprop.step.programme import Programme
from localprop.step.schedule import REDUCES, SENDS, Action, Op
from localprop.step.wiring import Wiring

Cost = Callable[[Action], float]
_PER_BATCH = (Op.H, Op.S, Op.P)  # other actions run once for each micro-batch


# --- what actions cost ----------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What the seconds of an action depend on."""

    op: Op
    segment: int
    flow: int | None

    @classmethod
    def of(cls, action: Action) -> Kind:
        """The kind of an action."""
        return cls(action.op, action.segment, action.flow)


@dataclass(frozen=True)
class Seconds:
    """What each action costs; called with one, it says so. Messages cost their senders and receivers nothing.

    Attributes:
        of: by kind; of F, L and B for one micro-batch.
        samples: how many the micro-batch had.
        twice: segments whose forward runs a second time.

    Example:
        >>> seconds = Seconds({Kind(Op.F, 0, None): 0.5, Kind(Op.S, 0, None): 0.1}, samples=32)
        >>> seconds(Action(Op.F, 0)), seconds.scaled(64)(Action(Op.F, 0)), seconds.scaled(64)(Action(Op.S, 0))
        (0.5, 1.0, 0.1)
    """

    of: Mapping[Kind, float]
    samples: int
    twice: frozenset[int] = frozenset()

    def __call__(self, action: Action) -> float:
        return self.of.get(Kind.of(action), 0.0)

    def scaled(self, samples: int) -> Seconds:
        """The seconds of a micro-batch of another size.

        An assumption, not a measurement: forwards, losses and backwards take as much longer as there are more samples,
        which small micro-batches on a fast device do not; steps take as long as before.
        """
        factor = samples / self.samples
        of = {kind: own if kind.op in _PER_BATCH else own * factor for kind, own in self.of.items()}
        return Seconds(of, samples, self.twice)

    def per_segment(self, wiring: Wiring, microbatches: int = 1) -> list[float]:
        """The seconds of each segment in a whole step; with a layer in each segment, those of the layers."""
        totals = [0.0] * len(wiring.segments)
        for kind, own in self.of.items():
            runs = 2 if kind.op is Op.F and kind.segment in self.twice else 1
            totals[kind.segment] += own if kind.op in _PER_BATCH else own * runs * microbatches
        return totals

    def per_module(self, wiring: Wiring, microbatches: int = 1) -> list[float]:
        """The seconds of each local module in a whole step, its head's included; what a placement balances."""
        totals = [0.0] * len(wiring.table.sizes)
        for segment, own in zip(wiring.segments, self.per_segment(wiring, microbatches), strict=True):
            totals[segment.module] += own
        return totals


def measure(engine: Engine, batch: Batch, rounds: int = 3, clock: Callable[[], float] | None = None) -> Seconds:
    """Time every action of real training steps, after one that is not counted; medians over micro-batches and rounds.

    Args:
        engine: of one process. A copy of it is trained; it and its model stay as they are.
        batch: one micro-batch for each of the engine's.
        rounds: how many steps.
        clock: tells the time in seconds; by default once the device has done all its work.

    Raises:
        BadInput: no rounds.

    Example:
        >>> seconds = measure(learner.engine, Batch(images[:16].float() / 255, labels[:16]), rounds=1)
        >>> seconds(learner.schedule[0]) > 0
        True
    """
    check([f"rounds={rounds} must be 1 or more."] if rounds < 1 else [])
    watch = Stopwatch(engine, batch, clock)
    for _ in range(rounds):
        watch.round()
    return watch.seconds()


class Stopwatch:
    """Times the actions of a copy of an engine, round by round, so that several can take turns; see :func:`measure`."""

    def __init__(self, engine: Engine, batch: Batch, clock: Callable[[], float] | None = None) -> None:
        self._engine = _copied(engine)
        self._batch = batch
        self._clock = clock or (lambda: _now(engine.device))
        self._spent: dict[Kind, list[float]] = defaultdict(list)
        self._microbatches = 1 + max(action.microbatch for action in engine.schedule)
        self._engine.step(batch)  # makes the optimizers' state, chooses kernels

    def round(self) -> None:
        """Time one step."""
        marks: list[tuple[Action | None, float]] = []
        self._engine.step(self._batch, observe=lambda action: marks.append((action, self._clock())))
        marks.append((None, self._clock()))
        for (action, start), (_, end) in pairwise(marks):
            assert action is not None
            self._spent[Kind.of(action)].append(end - start)

    def seconds(self) -> Seconds:
        """The medians of all rounds so far."""
        medians = {kind: statistics.median(spent) for kind, spent in self._spent.items()}
        return Seconds(medians, len(self._batch.inputs) // self._microbatches, Programme(self._engine.schedule).again)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _copied(engine: Engine) -> Engine:
    """A copy of the engine and all that it works on, but for torch's own generators, which are what its draws come from."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    generators = [torch.default_generator, *(torch.cuda.default_generators if started else ())]
    return copy.deepcopy(engine, {id(generator): generator for generator in generators})


# --- what messages cost ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wire:
    """A link between two devices.

    Attributes:
        bytes_per_second: in each direction.
        latency_s: from the last byte's leaving to its arrival.

    Example:
        >>> Wire(bytes_per_second=1e9, latency_s=0.5).seconds(2e9)
        2.5
    """

    bytes_per_second: float = math.inf
    latency_s: float = 0.0

    def seconds(self, nbytes: float) -> float:
        """How long a message takes on a link that is free."""
        return nbytes / self.bytes_per_second + self.latency_s

    def ring(self, nbytes: float, replicas: int) -> Ring:
        """An all-reduce over replicas in a ring: 2 (n - 1) rounds in which each passes on an n-th of the bytes.

        Example:
            >>> Wire(bytes_per_second=100.0, latency_s=1.0).ring(1000, replicas=4)
            Ring(sent_bytes=1500.0, seconds=21.0)

        Source: Patarasuk, Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations, JPDC 69(2), 2009.
        """
        rounds, each = 2 * (replicas - 1), nbytes / replicas
        return Ring(rounds * each, rounds * self.seconds(each))


class Ring(NamedTuple):
    """What an all-reduce makes one replica send, and how long it takes."""

    sent_bytes: float
    seconds: float


def message_bytes(wiring: Wiring, samples: int) -> Cost:
    """The bytes of a tensor that is sent or summed, by its action; 0 for other actions.

    Args:
        wiring: the network's shapes and dtypes.
        samples: of one micro-batch.
    """

    def of(action: Action) -> int:
        if action.op in SENDS:
            shape, dtype = wiring.message_shape(action.segment, samples, output=action.op is Op.SEND_F)
            return math.prod(shape) * dtype.itemsize
        return _parameter_bytes(wiring, action) if action.op in REDUCES else 0

    return of


def _parameter_bytes(wiring: Wiring, action: Action) -> int:
    if action.op is Op.REDUCE_H:
        (loss,) = (o.loss for o in wiring.objectives if o.place == (action.segment, action.flow))
        return sum(p.numel() * p.itemsize for p in wiring.heads[str(loss)].parameters())
    segment, encoders = wiring.segments[action.segment], wiring.encoders_at(action.segment)
    sizes = {
        n: size * wiring.layers.dtypes[i].itemsize for i in segment.layers for n, size in wiring.layers.sizes_of(i)
    }
    trained = sum(sizes[name] for name in segment.parameters)
    return trained + sum(p.numel() * p.itemsize for p in (encoders.parameters() if encoders else ()))
