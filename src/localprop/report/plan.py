"""Methods on a pipeline of many devices, on paper: from seconds that were measured on one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import SGD

from localprop.errors import BadInput, check
from localprop.learner import Learner
from localprop.models import create_model
from localprop.network import Layers, Partition, layers_of
from localprop.network.balance import balanced_cuts
from localprop.ranks.lowering import in_flight, lower
from localprop.ranks.pipeline import Ranks
from localprop.ranks.placement import Placement, layer_costs, sight_problems
from localprop.report.contender import Contender
from localprop.report.images import image_problems, is_count
from localprop.rule.auxiliary import Normalised
from localprop.rule.losses import Batch
from localprop.step.memory import predict
from localprop.step.schedule import Schedule
from localprop.step.stage import Stage
from localprop.step.timeline import Timeline, simulate
from localprop.step.timing import Seconds, Stopwatch, Wire, measure, message_bytes
from localprop.step.twin import Part
from localprop.training.config import device_of, noting
from localprop.training.expression import rule_of

END_TO_END = Contender.parse("end_to_end()")
_SPEEDS = {f"{scale}{unit}/s": 1000**power * share
           for power, scale in enumerate(("", "k", "M", "G", "T"))
           for unit, share in (("B", 1.0), ("bit", 1 / 8))}  # fmt: skip
CUTS = ("seconds", "layers")
_TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}

_FEW = 8  # ranks


def quantity(name: str, text: str, units: Mapping[str, float], usual: str) -> float:
    """A number with a unit.

    Args:
        name: of the value, for the complaint.
        text: such as 25GB/s.
        units: what each is worth.
        usual: an example, for the complaint.

    Raises:
        BadInput: no number, or another unit.

    Example:
        >>> quantity("link", "25GB/s", _SPEEDS, "25GB/s"), quantity("link", "400 Gbit/s", _SPEEDS, "25GB/s")
        (25000000000.0, 50000000000.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(\D+?)\s*", text)
    if match is None or match[2] not in units:
        raise BadInput(f"{name}={text!r} is no number with a unit: write one such as {usual} ({', '.join(units)}).")
    return float(match[1]) * units[match[2]]


@dataclass(frozen=True)
class Setting:
    """What is planned.

    Attributes:
        model: as in a config.
        input_shape: of one sample.
        classes: outputs of the network.
        batch: samples that one pipeline takes in a step.
        modules: local modules; as many as ranks if not given.
        ranks: devices of one pipeline.
        replicas: pipelines, each with a batch of its own.
        microbatches: parts that each pipeline runs its batch in.
        link: bytes per second between two devices.
        latency: of a message.
        cuts: where modules are cut: "seconds", for equal time, or "layers", for equal numbers of layers.
        rounds: of the measurement.
        device: auto, cpu or a name of torch's.
    """

    model: str = "resnet110"
    input_shape: tuple[int, ...] = (3, 32, 32)
    classes: int = 10
    batch: int = 128
    modules: int | None = None
    ranks: int = 4
    replicas: int = 1
    microbatches: int = 4
    link: str = "25GB/s"
    latency: str = "10us"
    cuts: str = "seconds"
    rounds: int = 5
    device: str = "auto"

    def problems(self) -> list[str]:
        """All that is wrong with the values, one sentence each.

        Example:
            >>> Setting(ranks=0, link="fast").problems()[0]
            'ranks=0 must be a whole number of 1 or more.'
        """
        names = ("classes", "batch", "ranks", "replicas", "microbatches", "rounds")
        wrong = [name for name in names if not is_count(getattr(self, name))]
        found = [f"{name}={getattr(self, name)!r} must be a whole number of 1 or more." for name in wrong]
        found += self._modules_problems("ranks" in wrong)
        if not {"batch", "microbatches"} & {*wrong} and self.batch % self.microbatches:
            fitting = max(1, self.batch // self.microbatches) * self.microbatches
            found.append(
                f"batch={self.batch} cannot be cut into {self.microbatches} equal micro-batches: take {fitting} or "
                f"{fitting + self.microbatches}."
            )
        with noting(found):
            if quantity("link", self.link, _SPEEDS, "25GB/s") == 0:
                found.append(f"link={self.link!r} carries nothing: give a speed above 0.")
        with noting(found):
            quantity("latency", self.latency, _TIMES, "10us")
        if self.cuts not in CUTS:
            found.append(f"cuts={self.cuts!r} is unknown: choose {' or '.join(CUTS)}.")
        with noting(found):
            device_of(self.device)
        return found + image_problems(self.model, self.classes, self.input_shape)

    def _modules_problems(self, ranks_are_wrong: bool) -> Iterator[str]:
        if self.modules is None:
            return
        if not is_count(self.modules):
            yield f"modules={self.modules!r} must be a whole number of 1 or more."
        elif not ranks_are_wrong and self.modules < self.ranks:
            yield f"modules={self.modules} cannot occupy ranks={self.ranks}: each rank needs a module of its own."

    @property
    def count(self) -> int:
        """The number of modules."""
        return self.modules or self.ranks

    @property
    def wire(self) -> Wire:
        """Every link."""
        return Wire(quantity("link", self.link, _SPEEDS, "25GB/s"), quantity("latency", self.latency, _TIMES, "10us"))

    def microbatch(self) -> Batch:
        """Random samples, of one micro-batch."""
        generator, samples = torch.Generator().manual_seed(0), self.batch // self.microbatches
        inputs = torch.randn(samples, *self.input_shape, generator=generator)
        labels = torch.randint(self.classes, (samples,), generator=generator)
        device = device_of(self.device)
        return Batch(inputs.to(device), labels.to(device))

    def network(self) -> nn.Module:
        """A new network; its weights do not matter."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return create_model(self.model, self.classes, self.input_shape).to(device_of(self.device))

    def layers(self) -> Layers:
        """The network's layers.

        Raises:
            BadInput: an unknown network, or one of fewer layers than modules.
        """
        layers = layers_of(self.network(), self.microbatch())
        few = f"{self.model} has {len(layers)} layer(s), too few for {self.count} modules: use fewer ranks and modules."
        check([few] if self.count > len(layers) else [])
        return layers

    def learner(self, contender: Contender, layers: Layers, cuts: Sequence[int]) -> Learner:
        """A new network and its learner, by steps of one micro-batch.

        Raises:
            BadInput: a method that the network or the cuts do not suit.
        """
        return Learner(
            self.network(),
            rule_of(contender.method),
            partition=Partition(layers, tuple(cuts)),
            optimizer=lambda parameters: SGD(parameters, lr=0.01, momentum=0.9),
            sample=self.microbatch(),
            recompute=contender.recompute,
            normalised=Normalised(),  # for losses that look at pixels; no cost depends on their values
            ranks=Ranks(alone=True),
        )

    def try_out(self, contender: Contender, layers: Layers) -> None:
        """A first look at a method on the ranks, before anything is measured: modules and ranks of equal layers.

        Raises:
            BadInput: a method that the network or a pipeline does not suit.
        """
        wiring = self.learner(contender, layers, Partition.uniform(layers, self.count).cuts).wiring
        check(sight_problems(wiring, Placement.balanced(wiring, self.ranks, layer_costs(wiring))))


# --- seconds --------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """A method, and what it costs on its own cuts."""

    contender: Contender
    learner: Learner
    seconds: Seconds


def measured(
    setting: Setting, layers: Layers, contenders: Sequence[Contender], progress: Callable[[str], object] = print
) -> list[Measured]:
    """Each method, cut into modules and timed in turns with the others.

    Args:
        setting: network, micro-batches, modules and rounds.
        layers: the network's.
        contenders: the methods.
        progress: is told what comes next.

    Raises:
        BadInput: a method that the network does not suit.
    """
    batch = setting.microbatch()
    if setting.cuts == "seconds":
        learners = _cut_by_seconds(setting, layers, contenders, progress)
    else:
        cuts = Partition.uniform(layers, setting.count).cuts
        learners = [setting.learner(contender, layers, cuts) for contender in contenders]
    watches = [Stopwatch(learner.engine, batch) for learner in learners]
    for number in range(setting.rounds):
        progress(f"measuring the methods, round {number + 1} of {setting.rounds}")
        for watch in watches:
            watch.round()
    seconds = [watch.seconds() for watch in watches]
    return [Measured(*each) for each in zip(contenders, learners, seconds, strict=True)]


def _cut_by_seconds(
    setting: Setting, layers: Layers, contenders: Sequence[Contender], progress: Callable[[str], object]
) -> list[Learner]:
    """Modules that take equally long, by the seconds of each layer, which are measured end-to-end."""
    progress("measuring each layer")
    whole = setting.learner(END_TO_END, layers, range(1, len(layers)))
    seconds = measure(whole.engine, setting.microbatch(), setting.rounds)
    of_layers = seconds.per_segment(whole.wiring, setting.microbatches)
    learners = []
    for contender in contenders:
        progress(f"cutting for {contender.label}")
        learners.append(_cut(setting, layers, contender, of_layers))
    return learners


def _cut(setting: Setting, layers: Layers, contender: Contender, of_layers: Sequence[float]) -> Learner:
    """Cut by the seconds of the layers; then again with those that the method adds to each module: heads, encoders, links."""
    learner = setting.learner(contender, layers, balanced_cuts(of_layers, setting.count))
    timed = measure(learner.engine, setting.microbatch(), rounds=1).per_module(learner.wiring, setting.microbatches)
    modules = learner.partition.modules
    added = [own - sum(of_layers[layer] for layer in module) for own, module in zip(timed, modules, strict=True)]
    cuts = balanced_cuts(of_layers, setting.count, [max(0.0, own) for own in added])
    return learner if cuts == learner.partition.cuts else setting.learner(contender, layers, cuts)


# --- on paper -------------------------------------------------------------------------------------------------------


class Way(NamedTuple):
    """How a method's micro-batches are ordered."""

    label: str = ""
    order: str = "1f1b"
    weight_share: float = 0.0


PIPELINES = (Way("GPipe", "gpipe"), Way("1F1B"), Way("zero-bubble", weight_share=0.5))


@dataclass(frozen=True)
class Row:
    """One method on paper.

    Attributes:
        method: its label.
        step_seconds: between the ends of two batches.
        samples_per_second: of all replicas.
        ratio: of these to end-to-end in one process.
        own_ratio: to the same method in one process.
        idle_share: of the devices in the steady loop.
        idle_shares: of each rank.
        one_batch_seconds: of a batch that begins when the one before has ended everywhere.
        wire_bytes: that all devices send in a step.
        memory_bytes: the peak of each rank, by its number, as the engine predicts it; of the first, the middle and the last
            one if there are many. None for zero-bubble, which the engine does not run.
        modules: the layers of each module.
    """

    method: str
    step_seconds: float
    samples_per_second: float
    ratio: float
    own_ratio: float
    idle_share: float
    idle_shares: tuple[float, ...]
    one_batch_seconds: float
    wire_bytes: float
    memory_bytes: dict[int, int] | None
    modules: list[int]


def on_paper(setting: Setting, measured: Measured, way: Way, plain_s: float) -> tuple[Row, Timeline]:
    """A method's row, and what its ranks do.

    Args:
        setting: ranks, replicas, micro-batches and links.
        measured: the method.
        way: the order of its micro-batches.
        plain_s: a step of end-to-end in one process.
    """
    contender, learner, seconds = measured
    wiring, of_modules = learner.wiring, seconds.per_module(learner.wiring, setting.microbatches)
    placement = Placement.balanced(wiring, setting.ranks, of_modules)
    check(f"{contender.label}: {problem}" for problem in sight_problems(wiring, placement))
    programmes = lower(
        wiring, placement, setting.microbatches,
        recomputed=seconds.twice, replicas=setting.replicas, order=way.order, cost=seconds,
    )  # fmt: skip

    def simulated(steps: int) -> Timeline:
        return simulate(
            programmes, seconds, message_bytes(wiring, seconds.samples), setting.wire,
            steps=steps, replicas=setting.replicas, in_flight=in_flight(programmes), weight_share=way.weight_share,
        )  # fmt: skip

    timeline, alone = simulated(16), simulated(1)
    step_s, replicas = timeline.seconds_per_step, setting.replicas
    row = Row(
        method=", ".join(filter(None, (contender.label, way.label))),
        step_seconds=step_s,
        samples_per_second=setting.batch * replicas / step_s,
        ratio=replicas * plain_s / step_s,
        own_ratio=replicas * sum(of_modules) / step_s,
        idle_share=timeline.idle_share,
        idle_shares=timeline.idle_shares,
        one_batch_seconds=alone.span_s,
        wire_bytes=timeline.wire_bytes * replicas,
        memory_bytes=None if way.weight_share else peaks(setting, learner, placement, programmes),
        modules=[len(module) for module in learner.partition.modules],
    )
    return row, timeline


def peaks(setting: Setting, learner: Learner, placement: Placement, programmes: tuple[Schedule, ...]) -> dict[int, int]:
    """The predicted peak bytes of ranks, their messages included; nothing is run.

    Args:
        setting: the batch of one pipeline.
        learner: of one process.
        placement: of its segments.
        programmes: of all ranks.
    """
    count, allowed = len(programmes), in_flight(programmes)
    ranks = range(count) if count <= _FEW else (0, count // 2, count - 1)
    batch = Batch(*(tensor.new_empty(setting.batch, *tensor.shape[1:]) for tensor in setting.microbatch()))
    parts = {rank: Part(Stage(placement.stages[rank]), programmes[rank], allowed) for rank in ranks}
    return {rank: predict(learner.engine, [], batch, part).peak_bytes for rank, part in parts.items()}
