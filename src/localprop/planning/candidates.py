"""Ways to train a network, each with its peak and its time: what a plan chooses among."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from localprop.checks import choose_partition
from localprop.cost.counted_host import CountedHost
from localprop.cost.flops import count_flops
from localprop.cost.layer_costs import Breaks, LayerCosts, Network, ScaledCosts, find_breaks
from localprop.cost.memory import predict_memory
from localprop.cost.replay import replay
from localprop.cost.replayable import can_replay, have_heads_of
from localprop.errors import BadInput
from localprop.methods.baselines import end_to_end
from localprop.network.recomputed import Recomputed, choose_recomputed
from localprop.planning.stretches import list_chain, list_plans
from localprop.rule.rule import Rule
from localprop.schedule.liveness import Liveness
from localprop.schedule.schedule import Schedule
from localprop.schedule.wiring import Wiring

# Tables for nested stretches grow with the cube of the layers.
_MAX_NESTED = 80


@dataclass(frozen=True)
class Way:
    """One way to train a network: arguments of a `Learner`, and what they cost.

    Attributes:
        method: the method's text.
        rule: the method.
        modules: local modules.
        recompute: which layers run again: none (0), all (1), every n-th (n), or stretches of them,
            as `Learner` takes them.
        microbatches: the parts that a batch is split into.
        offload: whether the host keeps what forwards save.
        peak_bytes: the most bytes alive at once, weights, optimizer state and batch included.
        resting_bytes: alive between steps: weights, optimizer state and batch.
        gradient_bytes: of parameters, alive at the peak; None where no replay has told.
        flops: operations of a step.
        time: operations, as a multiple of the plain loop's. This is a lower bound of the time.
        confirmed: whether an engine on fake tensors has read the peak; else it is a replay of what
            the layers cost.
        splits_batch_norm: whether BatchNorm sees parts of the batch only.
        host_bytes: the most that is offloaded to the host at once; None where nothing is.
        atomic: whether a step that fails can be taken back, which takes bytes; so only a way that
            is taken is looked at with it.
    """

    method: str
    rule: Rule = field(repr=False)
    modules: int
    recompute: int | str
    microbatches: int
    peak_bytes: int
    resting_bytes: int
    flops: int
    time: float = 1.0
    gradient_bytes: int | None = field(default=None, compare=False)
    confirmed: bool = False
    splits_batch_norm: bool = False
    offload: bool = False
    host_bytes: int | None = None
    atomic: bool = False

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments of a `Learner` that trains in this way."""
        saving = {"offload": True} if self.offload else {}
        return saving | {
            "rule": self.rule,
            "modules": self.modules,
            "recompute": self.recompute if self.recompute not in (0, 1) else bool(self.recompute),
            "microbatches": self.microbatches,
            "atomic": self.atomic,
        }

    @property
    def rerun(self) -> str:
        """Which layers run again, in a word or two; or what is done instead."""
        if self.offload:
            return "offload"
        if isinstance(self.recompute, int):
            return {0: "no", 1: "all"}.get(self.recompute, f"1 of {self.recompute}")
        return "nested" if "(" in self.recompute else "stretches"

    def __str__(self) -> str:
        parts = [self.method]
        if self.modules > 1:
            parts.append(f"{self.modules} modules")
        if isinstance(self.recompute, str):
            parts.append(f"recompute of {'nested ' * (self.rerun == 'nested')}stretches")
        elif self.recompute:
            every = "" if self.recompute == 1 else f" of every {_ordinal(self.recompute)} layer"
            parts.append(f"recompute{every}")
        if self.offload:
            parts.append("offload")
        if self.microbatches > 1:
            parts.append(f"{self.microbatches} micro-batches")
        return ", ".join(parts)


def _ordinal(number: int) -> str:
    return f"{number}{ {2: 'nd', 3: 'rd'}.get(number, 'th') }"


class Candidates:
    """Ways to train a network.

    Args:
        network: what is trained, and how.
        microbatches: the numbers of parts that a batch may be split into.
    """

    def __init__(self, network: Network, microbatches: Sequence[int]) -> None:
        self.network, self.microbatches = network, microbatches
        self._layers, self._samples = network.layers, network.batch.samples
        self._has_batch_norm = has_batch_norm(network.model)
        self._costs: dict[tuple[str, int], LayerCosts] = {}
        self._scaled: dict[tuple[str, int], ScaledCosts] = {}
        self._wirings: dict[tuple[str, int], Wiring] = {}
        self._orders: dict[tuple[str, int, int], Liveness] = {}
        self._measured_heads: dict[tuple[str, int], bool] = {}

    @cached_property
    def plain(self) -> Way:
        """The plain loop: end to end, all stored, the batch whole."""
        way = Way(
            "end_to_end",
            end_to_end(),
            modules=1,
            recompute=0,
            microbatches=1,
            peak_bytes=0,
            resting_bytes=0,
            flops=0,
        )
        (plain,) = self._list_one(way)
        return plain

    def list_end_to_end(self) -> Iterator[Way]:
        """End-to-end training, with recomputed layers and micro-batches.

        With several modules, each is stepped right after its backward, so that its gradients die.
        """
        yield self.plain
        if not self.network.on_host:
            yield self.confirm(replace(self.plain, offload=True))
        choices = [n for n in (0, 1, 2, 3, 4) if n <= len(self._layers)]
        for microbatches in self.microbatches:
            way = replace(self.plain, microbatches=microbatches, flops=0)
            for recompute in choices:
                if recompute or microbatches > 1:
                    yield from self._list_one(replace(way, recompute=recompute))
            yield from self._list_stretched(way, buckets=600)
            if microbatches == 1 and len(self._layers) <= _MAX_NESTED:
                yield from self._list_stretched(way, nested=True, buckets=400)

        for modules in _choose_counts(len(self._layers))[::3]:
            way = replace(self.plain, modules=modules, flops=0)
            for recompute in (0, 1):
                yield from self._list_one(replace(way, recompute=recompute))
            yield from self._list_stretched(way, buckets=60)

    def list_local(self, method: str, rule: Rule) -> Iterator[Way]:
        """A method with fewer and more modules, stored and recomputed, with micro-batches.

        Raises:
            BadInput: it can train the network with no number of modules.
        """
        refused: BadInput | None = None
        found = False
        for modules in _choose_counts(len(self._layers)):
            try:
                self.wire(rule, modules)
            except BadInput as error:  # a head that finds no map large enough, for example
                refused = refused or error
                continue
            found = True
            way = replace(self.plain, method=method, rule=rule, modules=modules, flops=0)
            for microbatches in self.microbatches:
                way = replace(way, microbatches=microbatches)
                for recompute in (0, 1):
                    yield from self._list_one(replace(way, recompute=recompute))
                if microbatches == 1:
                    yield from self._list_stretched(way, buckets=40)
        if refused is not None and not found:
            raise refused

    def _list_one(self, way: Way) -> Iterator[Way]:
        """A way that can be replayed; of others only a few, since an engine has to read them."""
        recomputed = choose_recomputed(self._layers, way.kwargs["recompute"])
        if self.can_replay(way, recomputed):
            yield self._cost(way, recomputed)
        elif way.modules == 1:
            if way.recompute in ((0, 1, 2) if way.microbatches == 1 else (0, 1)):
                yield self.confirm(way)
        elif way.microbatches == 1 and not way.recompute and way.modules in (2, 4, 8):
            yield self.confirm(way)

    def _list_stretched(self, way: Way, *, buckets: int, nested: bool = False) -> list[Way]:
        """A way with the layers of each module run again in stretches, for less and less bytes."""
        wiring = self.wire(way.rule, way.modules)
        if not self.can_replay(way):
            return []
        costs = self.scale(way.rule, -(-self._samples // way.microbatches))
        spans = [span for span, _ in wiring.list_spans()]
        # A replay takes as long as there are micro-batches.
        buckets = max(10, buckets // way.microbatches)
        chains = [list_chain(costs, span, self._breaks) for span in spans]
        starts = [span.start for span in spans]
        found = []
        for plan in list_plans(chains, starts, nested=nested, buckets=buckets):
            recomputed = Recomputed(plan)
            if plan and self.can_replay(way, recomputed):
                text = ",".join(stretch.format(self._layers.names) for stretch in plan)
                found.append(self._cost(replace(way, recompute=text), recomputed))
        return keep_front(found)

    def can_replay(self, way: Way, recomputed: Recomputed = Recomputed()) -> bool:  # noqa: B008
        """Whether what the layers cost, and heads at each of them, says all of a step."""
        wiring = self.wire(way.rule, way.modules)
        if not can_replay(wiring, recomputed):
            return False
        key = repr(way.rule), way.modules
        if key not in self._measured_heads:
            costs = self.measure(way.rule, self._samples)
            try:
                known = way.modules == 1 or have_heads_of(wiring, costs.wire("alone"))
            except BadInput:  # of a single layer as a module
                known = False
            self._measured_heads[key] = known
        return self._measured_heads[key]

    @cached_property
    def _breaks(self) -> Breaks:
        return find_breaks(self.network)

    def confirm(self, way: Way, *, count: Callable[[int], int] | None = None) -> Way:
        """The same way, as an engine on fake tensors reads it.

        Args:
            way: one of this network.
            count: what a storage of so many bytes counts for, if not for them.

        Raises:
            BadInput: the model does not run on them.
        """
        batch, microbatches = self.network.batch, way.microbatches
        if microbatches > 2 and self._samples % microbatches == 0:
            # All of its equal parts but the first take the same: two are enough.
            batch, microbatches = batch.select(2 * self._samples // microbatches), 2
        engine = self.network.make_engine(
            replace(self.wire(way.rule, way.modules), atomic=way.atomic),
            recompute=way.kwargs["recompute"],
            microbatches=microbatches,
            host=CountedHost() if way.offload else None,
        )
        memory = predict_memory(engine, [], batch, count=count)
        peak, resting = memory.peak_bytes, memory.resting_bytes
        if microbatches < way.microbatches:
            peak, resting = peak + way.resting_bytes - resting, way.resting_bytes
        flops = way.flops or count_flops(engine, [], batch) * way.microbatches // microbatches
        way = replace(way, host_bytes=memory.host_bytes)
        return self.finish(way, peak, resting, flops, confirmed=True)

    def _cost(self, way: Way, recomputed: Recomputed) -> Way:
        """A way that can be replayed, with its peak and its operations."""
        found = replay(
            self.scale(way.rule, -(-self._samples // way.microbatches)),
            self.measure(way.rule, self._samples).resting,
            self.order(way),
            recomputed,
        )
        way = replace(way, gradient_bytes=found.gradient_bytes)
        return self.finish(way, found.peak_bytes, found.resting_bytes, found.flops)

    def finish(
        self, way: Way, peak: int, resting: int, flops: int, *, confirmed: bool = False
    ) -> Way:
        """A way with its bytes and operations."""
        is_whole = way.modules == way.microbatches == 1 and not way.recompute
        is_plain = is_whole and way.rule == end_to_end()
        return replace(
            way,
            peak_bytes=peak,
            resting_bytes=resting,
            flops=flops,
            time=1.0 if is_plain else round(flops / max(self.plain.flops, 1), 4),
            confirmed=confirmed,
            splits_batch_norm=self._has_batch_norm and way.microbatches > 1,
        )

    def wire(self, rule: Rule, modules: int) -> Wiring:
        """The wiring of a rule with so many modules."""
        key = repr(rule), modules
        if key not in self._wirings:
            partition = choose_partition(self._layers, rule, self.network.task, modules)
            self._wirings[key] = self.network.wire(rule, partition)
        return self._wirings[key]

    def order(self, way: Way) -> Liveness:
        """The actions of a way's step, and who reads what last."""
        key = repr(way.rule), way.modules, way.microbatches
        if key not in self._orders:
            wiring = self.wire(way.rule, way.modules)
            schedule = Schedule.compile(wiring, way.microbatches)
            self._orders[key] = Liveness(wiring, schedule)
        return self._orders[key]

    def measure(self, rule: Rule, samples: int) -> LayerCosts:
        """The costs at a size of the batch, with the heads of a rule."""
        key = _name_heads(rule), samples
        if key not in self._costs:
            batch = self.network.batch.select(samples)
            self._costs[key] = LayerCosts(self.network._replace(batch=batch), rule)
        return self._costs[key]

    def scale(self, rule: Rule, samples: int) -> LayerCosts | ScaledCosts:
        """The costs at another size of the batch."""
        whole = self.measure(rule, self._samples)
        if samples == self._samples:
            return whole
        key = _name_heads(rule), samples
        if key not in self._scaled:
            # BatchNorm has nothing to compare one sample with, so tiny batches are doubled.
            other = self._samples // 2 if self._samples > 3 else 2 * self._samples
            self._scaled[key] = ScaledCosts(whole, self.measure(rule, other), samples)
        return self._scaled[key]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether what a model computes for a sample depends on the others."""
    kind = nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, kind) for module in model.modules())


def _name_heads(rule: Rule) -> str:
    """What the costs of layers depend on: all of a rule but its credit."""
    return repr((rule.aux, rule.loss, rule.context, rule.penalty))


def _choose_counts(layers: int) -> list[int]:
    """Numbers of modules: all up to 16, then some."""
    counts, count = [*range(2, min(layers, 16) + 1)], 16.0
    while (count := count * 1.25) < layers:
        counts.append(round(count))
    return [*dict.fromkeys([*counts, *([layers] if layers > 16 else [])])]


def keep_front(ways: Iterable[Way]) -> list[Way]:
    """Those to which no other is equal or better in bytes and in time, in the order of bytes.

    At equal times, fewer micro-batches are better, nothing that runs again, and fewer modules:
    operations do not say what small kernels cost.
    """

    def rank(way: Way) -> tuple[float, int, bool, int]:
        return way.time, way.microbatches, bool(way.recompute), way.modules

    best: list[Way] = []
    for way in sorted(ways, key=lambda way: (way.peak_bytes, *rank(way))):
        if not best or rank(way) < rank(best[-1]):
            best.append(way)
    return best


def find_ways(candidates: Candidates, methods: dict[str, Rule]) -> tuple[list[Way], list[str]]:
    """All ways of some methods, and why others cannot train the network."""
    ways, refused = [*candidates.list_end_to_end()], []
    for method, rule in methods.items():
        try:
            ways += candidates.list_local(method, rule)
        except BadInput as error:
            refused.append(f"{method} is left out: {error.problems[0]}")
    return ways, refused
