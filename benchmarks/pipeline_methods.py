"""How `pipeline.py` measures a method: seconds, computing seconds and peak bytes of each rank."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch.distributed as dist
from torch import Tensor

import localprop as lp
from localprop.cost.memory import LiveBytes
from localprop.schedule.schedule import Action, Op

COMPUTES = {Op.F, Op.L, Op.B, Op.W, Op.H, Op.S}
_START = time.perf_counter()

P = ParamSpec("P")
R = TypeVar("R")


class Meter:
    """Counts the seconds in which a rank computes.

    It is an observer of a learner's steps, and it can wrap functions.
    """

    def __init__(self) -> None:
        self.busy = 0.0
        self._since: float | None = None

    def __call__(self, action: Action) -> None:
        """Begin an action, and so end the one before."""
        self.end_action()
        self._since = time.perf_counter() if action.op in COMPUTES else None

    def end_action(self) -> None:
        """End the current action."""
        if self._since is not None:
            self.busy += time.perf_counter() - self._since
            self._since = None

    def count(self, function: Callable[P, R]) -> Callable[P, R]:
        """Wrap a function so that its seconds count."""

        @wraps(function)
        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.busy += time.perf_counter() - start

        return counted


class Sample(NamedTuple):
    """One rank's seconds per step, and the seconds of a step in which it computed."""

    seconds: float
    busy: float


@dataclass
class MethodSpec:
    """A way to train, as one rank sees it.

    Attributes:
        name: its name in the tables.
        step: trains on a batch.
        meter: counts the computing seconds of the step, if the step reports to it.
        flush: finishes the batches that are under way.
        list_held: lists the tensors that live between two steps, if memory is measured.
        one_process: the name of the method that does the same in one process.
        ceiling: the name of the method that is its bound.
        ranks: the ranks that take part.
        streams: whether a batch may begin before the one before it has ended.
        in_every_round: whether it runs in every round, or in every other one.
        learner: what trains, if it is one learner on all ranks.
        work: its method and number of micro-batches.
    """

    name: str
    step: Callable[[], object]
    meter: Meter = field(default_factory=Meter)
    flush: Callable[[], object] = lambda: None
    list_held: Callable[[], list[Tensor]] | None = None
    one_process: str = ""
    ceiling: str = ""
    ranks: tuple[int, ...] = (0, 1)
    streams: bool = False
    in_every_round: bool = True
    learner: lp.Learner | None = None
    work: tuple[str, int] = ("", 0)

    def sample(self, steps: int) -> list[Sample | None]:
        """Run a block of steps. Returns the sample of each rank, None for one that does not run."""
        dist.barrier()
        own = self._run_block(steps) if dist.get_rank() in self.ranks else None
        return gather_objects(own)

    def _run_block(self, steps: int) -> Sample:
        # The first step is not counted: it fills the pipeline, and lets torch choose kernels.
        self.step()
        self.meter.busy, start = 0.0, time.perf_counter()
        for _ in range(steps):
            self.step()
        sample = Sample((time.perf_counter() - start) / steps, self.meter.busy / steps)
        # One more, so that no rank is idle while another one is still in a step that counts.
        if self.streams:
            self.step()
        self.flush()
        return sample

    def measure_peak_bytes(self) -> list[int | None]:
        """The most bytes that live on each rank in the second of two more steps."""
        if self.list_held is None:
            return []
        dist.barrier()
        if not self.streams:
            self.step()
        with LiveBytes(self.list_held()) as live:
            if self.streams:
                self.step()
                # Now it is known what the first step leaves to the second one.
                live.reset_peak()
            self.step()
            self.flush()
        return gather_objects(live.peak)


T = TypeVar("T")


def gather_objects(own: T) -> list[T]:
    """The objects of all ranks, in their order."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


def report_progress(text: str) -> None:
    """Print a line with the time since the start, on the first rank."""
    if dist.get_rank() == 0:
        print(f"{time.perf_counter() - _START:6.1f} s  {text}", file=sys.stderr, flush=True)


def find_slowest(samples: Sequence[Sample | None]) -> float:
    """The seconds per step of the slowest rank, which are those of the pipeline."""
    return max(sample.seconds for sample in samples if sample)


def mean_over_ranks(costs: Sequence[float]) -> list[float]:
    """The mean of each cost over all ranks."""
    return [statistics.fmean(each) for each in zip(*gather_objects(costs), strict=True)]
