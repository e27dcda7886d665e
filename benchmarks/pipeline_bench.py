"""What `pipeline.py` measures on two ranks: methods of this library, and what they compare with.

::

    greedy, 4               two modules, one on each rank, 4 micro-batches ceiling, 4
    greedy's two halves as plain loops, each on its own rank, at the same time torch 1F1B, 4
    end-to-end by torch.distributed.pipelining greedy, 4, one process  the two modules on one rank,
    while the other one waits
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
import torch_pipelines as pipelines
from pipeline_methods import (
    Meter,
    MethodSpec,
    find_slowest,
    gather_objects,
    mean_over_ranks,
    report_progress,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

import localprop as lp
from localprop.cost.fake_engine import list_held_tensors
from localprop.cost.timing import Seconds, Stopwatch
from localprop.engine.engine import Engine
from localprop.models import CifarResNet, create_model
from localprop.network.balance import find_balanced_cuts
from localprop.ranks.pipeline import Ranks
from localprop.schedule.schedule import Action
from localprop.tasks.batch import Batch

METHODS = {
    "greedy": lp.greedy(),
    "backlink(1)": lp.backlink(layers=1),
    "interlocking(2)": lp.interlocking(wise=2),
    "end_to_end": lp.end_to_end(),
}
MICROBATCHES = 4  # unless a method says otherwise
PLAIN = "plain loop"
# These methods also run with one micro-batch. Large activations cost more there, so the cuts
# differ.
ONE_MICROBATCH_TOO = ("greedy", "backlink(1)")
REACH = 4  # layers by which a trial may move a cut


def refine_cut(cut: int, costs: Sequence[float], build: Callable[[int], MethodSpec]) -> int:
    """Find a better cut, by the computing seconds of each rank and the cost of each layer.

    The new cut is taken if a trial with it is quicker.
    """
    samples = build(cut).sample(2)
    first, second = (sample.busy for sample in samples if sample)

    def predict_slowest(new: int) -> float:
        moved = sum(costs[cut:new]) - sum(costs[new:cut])
        return max(first + moved, second - moved)

    candidates = range(max(1, cut - REACH), min(cut + REACH + 1, len(costs)))
    better = min(candidates, key=predict_slowest)
    if better == cut:
        return cut
    return better if find_slowest(build(better).sample(2)) < find_slowest(samples) else cut


class SilentCommunicator:
    """Carries nothing: what is received is the same tensors each time."""

    max_in_flight = 1

    def __init__(self, received: Sequence[Tensor]) -> None:
        self.received = received

    def begin(self, *args: object, **kwargs: object) -> None: ...

    def send(self, *args: object, **kwargs: object) -> None: ...

    def receive(self, action: Action, count: int) -> list[Tensor | None]:
        """The tensor for the micro-batch of the action."""
        return [self.received[action.microbatch]]

    def start_reduce(self, *args: object, **kwargs: object) -> None: ...

    def finish_reduce(self, *args: object, **kwargs: object) -> None: ...


class Bench:
    """Builds methods: networks with the same weights, trained on the same batch.

    Args:
        model: a CIFAR ResNet, by name.
        samples: the size of the batch.

    Attributes:
        cuts: the first layer of the second module, by method and number of micro-batches.
        bounds: the bounds of torch's stages, by the number of stages.
        seconds: the seconds of each action, by method and number of micro-batches.
    """

    def __init__(self, model: str, samples: int) -> None:
        self.model = model
        self.samples = samples
        self.device = (
            torch.device("cuda", dist.get_rank())
            if torch.cuda.device_count() > 1
            else torch.device("cpu")
        )
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(samples, 3, 32, 32, generator=generator)
        targets = torch.randint(10, (samples,), generator=generator)
        self.batch = Batch.of((inputs.to(self.device), targets.to(self.device)))
        self.layers = lp.layers_of(self.build_network(), self.batch.inputs)
        self.cuts: dict[tuple[str, int], int] = {}
        self.bounds: dict[int, Sequence[int]] = {}
        self.seconds: dict[tuple[str, int], Seconds] = {}

    def build_network(self) -> CifarResNet:
        """The network, with the same weights each time."""
        torch.manual_seed(0)
        network = create_model(self.model, 10, (3, 32, 32)).to(self.device)
        assert isinstance(network, CifarResNet)
        return network

    @staticmethod
    def sgd(parameters: list[nn.Parameter]) -> Optimizer:
        """The optimizer of all methods."""
        return SGD(parameters, lr=0.01, momentum=0.9)

    def build_learner(
        self, method: str, cuts: Sequence[int], microbatches: int, ranks: Ranks
    ) -> lp.Learner:
        """A learner of a method."""
        return lp.Learner(
            self.build_network(),
            METHODS[method],
            partition=lp.Partition(self.layers, tuple(cuts)),
            optimizer=self.sgd,
            sample=self.batch,
            microbatches=microbatches,
            ranks=ranks,
        )

    # --- seconds and cuts -------------------------------------------------------------------------

    def measure_seconds(
        self, method: str, cuts: Sequence[int], microbatches: int = MICROBATCHES, rounds: int = 3
    ) -> Seconds:
        """The seconds of each action on one micro-batch, means over the ranks.

        Both ranks work on the same at the same time, as they will in the pipeline.
        """
        learner = self.build_learner(method, cuts, 1, Ranks(alone=True))
        samples = self.samples // microbatches
        batch = self.batch.select(samples)
        watch = Stopwatch(learner.engine, batch)
        for _ in range(rounds):
            dist.barrier()
            watch.time_round()
        own = watch.seconds()
        all_ranks = gather_objects(dict(own.by_kind))
        means = {
            kind: statistics.fmean(by_kind[kind] for by_kind in all_ranks) for kind in own.by_kind
        }
        return Seconds(means, own.samples)

    def find_first_cut(self, method: str, layer_costs: Sequence[float]) -> int:
        """The cut at which both modules take equally long, with heads and links of the method."""
        (cut,) = find_balanced_cuts(layer_costs, 2)
        learner = self.build_learner(method, (cut,), 1, Ranks(alone=True))
        seconds = self.measure_seconds(method, (cut,), rounds=2)
        modules = seconds.per_module(learner.wiring, MICROBATCHES)
        layers = sum(layer_costs[:cut]), sum(layer_costs[cut:])
        added = [max(0.0, own - without) for own, without in zip(modules, layers, strict=True)]
        return find_balanced_cuts(layer_costs, 2, added)[0]

    def balance(self) -> None:
        """Find the cuts of all methods, and the seconds that their predictions are made of."""
        every_layer = range(1, len(self.layers))
        learner = self.build_learner("end_to_end", every_layer, 1, Ranks(alone=True))
        seconds = self.measure_seconds("end_to_end", every_layer)
        costs = seconds.per_segment(learner.wiring, MICROBATCHES)
        for method in METHODS:
            first = self.find_first_cut(method, costs)
            counts = (MICROBATCHES, 1) if method in ONE_MICROBATCH_TOO else (MICROBATCHES,)
            for count in counts:
                cut = refine_cut(first, costs, partial(self.build_method, method, count))
                self.cuts[method, count] = cut
                rounds = 3 if count > 1 else 2
                self.seconds[method, count] = self.measure_seconds(method, (cut,), count, rounds)
                report_progress(
                    f"{method}, {count}: cut at layer {first} by seconds of layers, {cut} by trial"
                )
        self._balance_torch()

    def _balance_torch(self) -> None:
        layers = pipelines.list_layers(self.build_network())
        inputs = self.batch.inputs[: self.samples // MICROBATCHES]
        seconds = mean_over_ranks(pipelines.measure_layer_seconds(layers, inputs, rounds=3))
        costs = [MICROBATCHES * each for each in seconds]
        first = pipelines.find_balanced_bounds(costs, 2)[1]
        cut = refine_cut(
            first,
            costs,
            lambda cut: self.build_torch("1F1B", MICROBATCHES, (0, cut, len(layers))),
        )
        self.bounds = {
            2: (0, cut, len(layers)),
            4: pipelines.find_balanced_bounds(costs, 4),
        }
        report_progress(f"torch: cuts {self.bounds}")

    # --- methods ----------------------------------------------------------------------------------

    def build_method(
        self,
        method: str,
        microbatches: int,
        cut: int | None = None,
        *,
        order: str = "1f1b",
        in_every_round: bool = True,
        silent: bool = False,
    ) -> MethodSpec:
        """A method of this library on two ranks; a silent one sends no messages."""
        cut = cut or self.cuts[method, microbatches]
        learner = self.build_learner(method, (cut,), microbatches, Ranks(order=order))
        if silent:
            received = self.run_first_module(cut).chunk(microbatches)
            learner.engine = Engine(
                learner.model,
                learner.wiring,
                learner.schedule,
                learner.engine.optimizers,
                device=learner.device,
                stage=learner.engine.stage,
                communicator=SilentCommunicator(received),
            )
        meter = Meter()

        def step() -> None:
            learner.step(self.batch, observe=meter)
            meter.end_action()

        def flush() -> None:
            learner.flush()
            meter.end_action()

        name = method + (", gpipe" if order == "gpipe" else "") + f", {microbatches}"
        # In one process, interlocking needs no engine either: with two modules it is end-to-end.
        alone = PLAIN if method in ("end_to_end", "interlocking(2)") else method
        modules = (learner.model, learner.heads, learner.encoders)
        return MethodSpec(
            name + (", no messages" if silent else ""),
            step,
            meter,
            flush,
            lambda: [
                *list_held_tensors(modules, learner.optimizers, self.batch),
                learner.engine.plan.scalar,
            ],
            one_process=f"{alone}, {microbatches}, one process",
            ceiling=f"ceiling, {microbatches}",
            streams=True,
            in_every_round=in_every_round,
            learner=None if silent else learner,
            work=(method, microbatches),
        )

    def build_torch(
        self,
        schedule: str,
        microbatches: int,
        bounds: Sequence[int] = (),
        *,
        in_every_round: bool = True,
    ) -> MethodSpec:
        """End-to-end training by one of torch's schedules."""
        bounds = bounds or self.bounds[pipelines.count_stages(schedule)]
        train = pipelines.build_pipeline_step(
            schedule, self.build_network(), self.batch.data, microbatches, self.sgd, bounds
        )
        meter = Meter()
        for stage in train.stages:
            for name in ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk"):
                setattr(stage, name, meter.count(getattr(stage, name)))
        train.optimizer.step = meter.count(train.optimizer.step)  # type: ignore[method-assign, assignment]
        modules = [stage.submod for stage in train.stages]
        return MethodSpec(
            f"torch {schedule}, {microbatches}",
            lambda: train(*self.batch.data),
            meter,
            list_held=lambda: list_held_tensors(modules, [train.optimizer], self.batch),
            one_process=f"{PLAIN}, {MICROBATCHES}, one process",
            ceiling=f"ceiling, {MICROBATCHES}",
            in_every_round=in_every_round,
        )

    def run_first_module(self, cut: int) -> Tensor:
        """The output of the first module on the batch."""
        layers = pipelines.list_layers(self.build_network())[:cut]
        with torch.no_grad():
            output: Tensor = nn.Sequential(*layers)(self.batch.inputs)
        return output

    def build_ceiling(self, microbatches: int) -> MethodSpec:
        """Greedy's halves as plain loops, each on its own rank."""
        cut = self.cuts["greedy", microbatches]
        layers = pipelines.list_layers(self.build_network())
        head = self.build_learner("greedy", (cut,), 1, Ranks(alone=True)).heads["0"]
        assert isinstance(head, nn.ModuleDict)
        is_first = dist.get_rank() == 0
        inputs = self.batch.inputs if is_first else self.run_first_module(cut)
        half = nn.Sequential(*(layers[:cut] if is_first else layers[cut:]))
        optimizer = self.sgd([*half.parameters(), *(head.parameters() if is_first else ())])

        def compute_loss(x: Tensor, y: Tensor) -> Tensor:
            output = half(x)
            if not is_first:
                return functional.cross_entropy(output, y)
            loss: Tensor = head["loss"](output, head["aux"], lp.LossInputs(x, y, batch=(x, y)))
            return loss

        def step() -> None:
            pairs = zip(
                inputs.chunk(microbatches), self.batch.targets.chunk(microbatches), strict=True
            )
            for x, y in pairs:
                torch.autograd.backward(compute_loss(x, y) / microbatches)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return MethodSpec(f"ceiling, {microbatches}", step, ceiling=f"ceiling, {MICROBATCHES}")

    def build_one_process(
        self, method: str, microbatches: int, *, both: bool = False, in_every_round: bool = False
    ) -> MethodSpec:
        """A method, or the plain loop, in one process.

        Meanwhile the other rank waits or, with `both`, does the same.
        """
        if method == PLAIN:
            plain = pipelines.make_plain_step(self.build_network(), microbatches, self.sgd)
            step: Callable[[], object] = partial(plain, *self.batch.data)
        else:
            cuts = (self.cuts[method, microbatches],)
            learner = self.build_learner(method, cuts, microbatches, Ranks(alone=True))
            step = partial(learner.step, self.batch)
        return MethodSpec(
            f"{method}, {microbatches}, {'both at once' if both else 'one process'}",
            step,
            ceiling=f"ceiling, {MICROBATCHES}",
            ranks=(0, 1) if both else (0,),
            in_every_round=in_every_round,
        )

    def build_best_torch(self, schedule: str) -> MethodSpec:
        """A schedule of torch with the best of other numbers of micro-batches, by trial."""
        counts = (2, 8, 16)
        specs = [self.build_torch(schedule, count, in_every_round=False) for count in counts]
        seconds = [find_slowest(spec.sample(1)) for spec in specs]
        listed = ", ".join(f"{own:.3f}" for own in seconds)
        report_progress(f"{schedule} with 2, 8, 16 micro-batches: {listed} s")
        return specs[seconds.index(min(seconds))]
