"""What `pipeline.py` measures on two ranks: local methods on this library, and what they are compared to.

::

    greedy, 4          two modules, one on each rank, 4 micro-batches
    ceiling, 4         greedy's two halves as plain loops, each on its own rank, at the same time
    torch 1F1B, 4      end-to-end by torch.distributed.pipelining
    greedy, 4, one process
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch_pipelines as pipelines
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

import localprop as lp
from localprop.models import create_model
from localprop.network.balance import balanced_cuts
from localprop.ranks.pipeline import Ranks
from localprop.rule.losses import Batch
from localprop.step.memory import LiveBytes
from localprop.step.schedule import Action, Op
from localprop.step.timing import Kind, Seconds, Stopwatch
from localprop.step.twin import held_by

METHODS = {
    "greedy": lp.greedy(),
    "backlink(1)": lp.backlink(layers=1),
    "interlocking(2)": lp.interlocking(wise=2),
    "end_to_end": lp.end_to_end(),
}
PARTS = 4  # micro-batches, unless said
PLAIN = "plain loop"
STREAMING = ("greedy", "backlink(1)")  # also with one micro-batch, where large activations cost more: other cuts
REACH = 4  # layers that a trial may move a cut
COMPUTES = {Op.F, Op.L, Op.B, Op.H, Op.S}
_STARTED = time.perf_counter()


class Meter:
    """The seconds in which a rank computes: an observer of a learner's steps, and a wrapper of functions."""

    def __init__(self) -> None:
        self.busy = 0.0
        self._since: float | None = None

    def __call__(self, action: Action) -> None:
        self.end()
        self._since = time.perf_counter() if action.op in COMPUTES else None

    def end(self) -> None:
        """The action has ended."""
        if self._since is not None:
            self.busy += time.perf_counter() - self._since
            self._since = None

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its seconds counted."""

        @wraps(function)
        def timing(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.busy += time.perf_counter() - start

        return timing


class Sample(NamedTuple):
    """One rank's seconds per step, and those of them in which it computed."""

    seconds: float
    busy: float


@dataclass
class Contender:
    """Something that trains, as one rank sees it.

    Attributes:
        name: in the tables.
        step: trains on a batch.
        meter: what the step reports to, if it does.
        flush: ends what streams.
        held: the tensors that live between two steps, if memory is measured.
        one: the contender that does the same in one process.
        ceiling: the contender that is its bound.
        ranks: who takes part.
        streams: whether a batch may begin before the one before has ended.
        often: whether it runs in every round.
        learner: that trains, if it is one on all ranks.
        work: its method and number of micro-batches.
    """

    name: str
    step: Callable[[], object]
    meter: Meter = field(default_factory=Meter)
    flush: Callable[[], object] = lambda: None
    held: Callable[[], list[Tensor]] | None = None
    one: str = ""
    ceiling: str = f"ceiling, {PARTS}"
    ranks: tuple[int, ...] = (0, 1)
    streams: bool = False
    often: bool = True
    learner: lp.Learner | None = None
    work: tuple[str, int] = ("", 0)

    def sample(self, steps: int) -> list[Sample | None]:
        """Run a block of steps; of each rank its sample, None of one that takes no part."""
        dist.barrier()
        own = self._block(steps) if dist.get_rank() in self.ranks else None
        return gathered(own)

    def _block(self, steps: int) -> Sample:
        self.step()
        self.meter.busy, start = 0.0, time.perf_counter()
        for _ in range(steps):
            self.step()
        sample = Sample((time.perf_counter() - start) / steps, self.meter.busy / steps)
        if self.streams:
            self.step()
        self.flush()
        return sample

    def peak_bytes(self) -> list[int | None]:
        """Of each rank, the most bytes that live in the second of two more steps."""
        if self.held is None:
            return []
        dist.barrier()
        if not self.streams:
            self.step()
        with LiveBytes(self.held()) as live:
            if self.streams:
                self.step()
                live.mark()  # what the first step leaves to the second is now known
            self.step()
            self.flush()
        return gathered(live.peak)


def gathered(own: Any) -> list[Any]:
    """What each rank has."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def say(text: str) -> None:
    """Progress, told once."""
    if dist.get_rank() == 0:
        print(f"{time.perf_counter() - _STARTED:6.1f} s  {text}", file=sys.stderr, flush=True)


def slower(samples: Sequence[Sample | None]) -> float:
    """The seconds per step of the slower rank, which are the pipeline's."""
    return max(sample.seconds for sample in samples if sample)


def refined(cut: int, costs: Sequence[float], build: Callable[[int], Contender]) -> int:
    """A better cut: by the seconds that each rank computes for, given what each layer costs, if a trial is the quicker."""
    samples = build(cut).sample(2)
    first, second = (sample.busy for sample in samples if sample)

    def slowest(new: int) -> float:
        moved = sum(costs[cut:new]) - sum(costs[new:cut])
        return max(first + moved, second - moved)

    better = min(range(max(1, cut - REACH), min(cut + REACH + 1, len(costs))), key=slowest)
    return better if better != cut and slower(build(better).sample(2)) < slower(samples) else cut


# --- what is trained -----------------------------------------------------------------------------------------------------


class Silent:
    """A link that carries nothing: what is received is the same tensors each time."""

    def __init__(self, received: Sequence[Tensor]) -> None:
        self.received = received

    def begin(self, *args: object, **kwargs: object) -> None: ...

    def send(self, *args: object) -> None: ...

    def receive(self, action: Action) -> Tensor:
        return self.received[action.microbatch]

    def reduce(self, *args: object) -> None: ...

    def reduced(self, *args: object) -> None: ...


class Bench:
    """Builds contenders: networks of the same weights on the same batch.

    Args:
        model: a CIFAR ResNet, by name.
        samples: of a batch.

    Attributes:
        cuts: the layer that the second module begins with, by method and number of micro-batches.
        bounds: of torch's stages, by how many there are.
        seconds: of each action, by method and number of micro-batches.
    """

    def __init__(self, model: str, samples: int) -> None:
        self.model = model
        self.samples = samples
        generator = torch.Generator().manual_seed(0)
        self.device = torch.device("cuda", dist.get_rank()) if torch.cuda.device_count() > 1 else torch.device("cpu")
        inputs = torch.randn(samples, 3, 32, 32, generator=generator).to(self.device)
        self.batch = Batch(inputs, torch.randint(10, (samples,), generator=generator).to(self.device))
        self.layers = lp.layers_of(self.network(), inputs)
        self.cuts: dict[tuple[str, int], int] = {}
        self.bounds: dict[int, Sequence[int]] = {}
        self.seconds: dict[tuple[str, int], Seconds] = {}

    def network(self) -> Any:
        torch.manual_seed(0)
        return create_model(self.model, 10, (3, 32, 32)).to(self.device)

    @staticmethod
    def sgd(parameters: list[nn.Parameter]) -> Optimizer:
        return SGD(parameters, lr=0.01, momentum=0.9)

    def learner(self, method: str, cuts: Sequence[int], microbatches: int, ranks: Ranks) -> lp.Learner:
        partition = lp.Partition(self.layers, tuple(cuts))
        return lp.Learner(
            self.network(), METHODS[method], partition=partition, optimizer=self.sgd, sample=self.batch,
            microbatches=microbatches, ranks=ranks,
        )  # fmt: skip

    # --- seconds and cuts ------------------------------------------------------------------------------------------------

    def measured(self, method: str, cuts: Sequence[int], parts: int = PARTS, rounds: int = 3) -> Seconds:
        """The seconds of each action on one micro-batch while both ranks do the same; means over the ranks."""
        learner = self.learner(method, cuts, 1, Ranks(alone=True))
        watch = Stopwatch(learner.engine, Batch(*(tensor[: self.samples // parts] for tensor in self.batch)))
        for _ in range(rounds):
            dist.barrier()
            watch.round()
        own = watch.seconds()
        everyone: list[dict[Kind, float]] = gathered(dict(own.of))
        return Seconds({kind: statistics.fmean(each[kind] for each in everyone) for kind in own.of}, own.samples)

    def first_cut(self, method: str, of_layers: Sequence[float]) -> int:
        """Where both modules take equally long, with what the method adds to each: head, links."""
        (cut,) = balanced_cuts(of_layers, 2)
        learner = self.learner(method, (cut,), 1, Ranks(alone=True))
        timed = self.measured(method, (cut,), rounds=2).per_module(learner.wiring, PARTS)
        sums = sum(of_layers[:cut]), sum(of_layers[cut:])
        added = [max(0.0, own - layers) for own, layers in zip(timed, sums, strict=True)]
        return balanced_cuts(of_layers, 2, added)[0]

    def balance(self) -> None:
        """Find the cuts of all methods, and the seconds that they are predicted from."""
        whole = self.learner("end_to_end", range(1, len(self.layers)), 1, Ranks(alone=True))
        costs = self.measured("end_to_end", range(1, len(self.layers))).per_segment(whole.wiring, PARTS)
        for method in METHODS:
            cut = self.first_cut(method, costs)
            for parts in (PARTS, 1) if method in STREAMING else (PARTS,):
                trial = refined(cut, costs, partial(self.ours, method, parts))
                self.cuts[method, parts] = trial
                self.seconds[method, parts] = self.measured(method, (trial,), parts, rounds=3 if parts > 1 else 2)
                say(f"{method}, {parts}: cut at layer {cut} by seconds of layers, {trial} by trial")
        self._balance_torch()

    def _balance_torch(self) -> None:
        layers = pipelines.layers_of(self.network())
        everyone = gathered(pipelines.layer_seconds(layers, self.batch.inputs[: self.samples // PARTS], rounds=3))
        costs = [PARTS * statistics.fmean(each) for each in zip(*everyone, strict=True)]
        first = pipelines.balanced(costs, 2)[1]
        cut = refined(first, costs, lambda cut: self.torchs("1F1B", PARTS, (0, cut, len(layers))))
        self.bounds = {2: (0, cut, len(layers)), 4: pipelines.balanced(costs, 4)}
        say(f"torch: cuts {self.bounds}")

    # --- contenders ------------------------------------------------------------------------------------------------------

    def ours(self, method: str, microbatches: int, cut: int | None = None, *, order: str = "1f1b", often: bool = True,
             silent: bool = False) -> Contender:  # fmt: skip
        """A method on two ranks."""
        cut = cut or self.cuts[method, microbatches]
        learner = self.learner(method, (cut,), microbatches, Ranks(order=order))
        name = f"{method}{', gpipe' if order == 'gpipe' else ''}, {microbatches}{', no messages' if silent else ''}"
        if silent:
            learner.engine.link = Silent(self.halfway(cut).chunk(microbatches))
        meter = Meter()

        def step() -> None:
            learner.step(self.batch, observe=meter)
            meter.end()

        def flush() -> None:
            learner.flush()
            meter.end()

        modules = (learner.model, learner.heads, learner.encoders)
        one = f"{PLAIN if method in ('end_to_end', 'interlocking(2)') else method}, {microbatches}, one process"
        return Contender(
            name, step, meter, flush, lambda: held_by(modules, learner.optimizers, self.batch), one,
            ceiling=f"ceiling, {microbatches}", streams=True, often=often,
            learner=None if silent else learner, work=(method, microbatches),
        )  # fmt: skip

    def torchs(self, schedule: str, microbatches: int, bounds: Sequence[int] = (), *, often: bool = True) -> Contender:
        """One of torch's schedules."""
        bounds = bounds or self.bounds[pipelines.stage_count(schedule)]
        train = pipelines.pipeline_step(schedule, self.network(), self.batch, microbatches, self.sgd, bounds)
        meter = Meter()
        for stage in train.stages:
            for name in ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk"):
                setattr(stage, name, meter.timed(getattr(stage, name)))
        train.optimizer.step = meter.timed(train.optimizer.step)  # type: ignore[method-assign]
        modules = [stage.submod for stage in train.stages]
        return Contender(
            f"torch {schedule}, {microbatches}", lambda: train(*self.batch), meter,
            held=lambda: held_by(modules, [train.optimizer], self.batch), one=f"{PLAIN}, {PARTS}, one process", often=often,
        )  # fmt: skip

    def halfway(self, cut: int) -> Tensor:
        """What the first module makes of the batch."""
        with torch.no_grad():
            made: Tensor = nn.Sequential(*pipelines.layers_of(self.network())[:cut])(self.batch.inputs)
        return made

    def ceiling(self, microbatches: int) -> Contender:
        """Greedy's halves as plain loops, each on its own rank."""
        cut = self.cuts["greedy", microbatches]
        layers = pipelines.layers_of(self.network())
        head: Any = self.learner("greedy", (cut,), 1, Ranks(alone=True)).heads["0"]
        first = dist.get_rank() == 0
        inputs = self.batch.inputs if first else self.halfway(cut)
        half = nn.Sequential(*(layers[:cut] if first else layers[cut:]))
        optimizer = self.sgd([*half.parameters(), *(head.parameters() if first else ())])

        def step() -> None:
            for x, y in zip(inputs.chunk(microbatches), self.batch.targets.chunk(microbatches), strict=True):
                made = half(x)
                loss = head["loss"](made, head["aux"], Batch(x, y)) if first else functional.cross_entropy(made, y)
                (loss / microbatches).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return Contender(f"ceiling, {microbatches}", step)

    def one_process(self, method: str, microbatches: int, *, both: bool = False, often: bool = False) -> Contender:
        """A method, or the plain loop, in one process while the other rank waits, or while it does the same."""
        name = f"{method}, {microbatches}, {'both at once' if both else 'one process'}"
        if method == PLAIN:
            plain = pipelines.plain_step(self.network(), microbatches, self.sgd)
            return Contender(name, lambda: plain(*self.batch), ranks=(0, 1) if both else (0,), often=often)
        learner = self.learner(method, (self.cuts[method, microbatches],), microbatches, Ranks(alone=True))
        return Contender(name, lambda: learner.step(self.batch), ranks=(0, 1) if both else (0,), often=often)

    def best_torch(self, schedule: str) -> Contender:
        """A schedule at the best of other numbers of micro-batches, by trial."""
        tried = [self.torchs(schedule, microbatches, often=False) for microbatches in (2, 8, 16)]
        seconds = [slower(contender.sample(1)) for contender in tried]
        say(f"{schedule} with 2, 8, 16 micro-batches: {', '.join(f'{own:.3f}' for own in seconds)} s")
        return tried[seconds.index(min(seconds))]
