"""What each layer of a network costs: bytes and operations, measured once.

An engine runs on fake tensors with every layer a module of its own, so each action of its step is
an action of one layer. What is alive before, during and after it says what the layer keeps for its
backward, how much more it needs while it runs, and what Python's frames hold meanwhile. `replay`
needs steps of six kinds, each with layers that are stored and with such that run again::

    whole      end to end: a gradient at each layer's input
    beside     the same while somebody holds the layer's output, as a hook at its end does
    alone      greedy: no gradient at the input; also heads, and what frames hold
    linked     one layer back: a backward after which the graph stays for another
    passing    a backward that trains nothing, but passes on
    summed     the same, which keeps the gradient that it begins with for the weights
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from localprop.cost.fake_engine import faked
from localprop.cost.flops import FlopCounter
from localprop.cost.layer_reading import LayerReading, LayerWatcher, Meter
from localprop.data.dataset import Normalization
from localprop.engine.engine import Engine
from localprop.engine.offload import Host
from localprop.engine.optimizers import Optimizers
from localprop.engine.user_optimizers import (
    OptimizerFactory,
    find_owned_parameters,
    make_optimizers,
)
from localprop.network.layers import Layers
from localprop.network.partition import Partition
from localprop.network.recomputed import RecomputeChoice, choose_recomputed
from localprop.rule.credit import Credit, make_table
from localprop.rule.rule import Rule
from localprop.rule.table import CreditTable, Entry, T
from localprop.schedule.schedule import Schedule
from localprop.schedule.wire import wire
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch
from localprop.tasks.task import Task


class Network(NamedTuple):
    """What is trained, and how.

    Attributes:
        model: the network.
        layers: its layers.
        task: what it is trained for.
        batch: only its shapes and dtypes are used.
        optimizer: makes an optimizer of parameters.
        autocast: the dtype of forwards and losses, or None.
        on_host: whether it is trained on the host, and not on an accelerator.
        weight_gradients: as `wire` takes it.
    """

    model: nn.Module
    layers: Layers
    task: Task
    batch: Batch
    optimizer: OptimizerFactory
    autocast: torch.dtype | None = None
    on_host: bool = True
    weight_gradients: str = "once"

    def wire(self, rule: Rule, partition: Partition, device: str = "meta") -> Wiring:
        """The wiring of a rule. By default its heads have no data."""
        # Losses of pixels need a normalisation. No cost depends on its values.
        with torch.device(device):
            return wire(
                rule,
                partition,
                task=self.task,
                frozen=self.layers.frozen,
                normalization=Normalization(),
                weight_gradients=self.weight_gradients,
            )

    def make_engine(
        self,
        wiring: Wiring,
        *,
        recompute: RecomputeChoice = False,
        microbatches: int = 1,
        host: Host | None = None,
    ) -> Engine:
        """An engine of a wiring, with optimizers of its own."""
        owned = find_owned_parameters(self.model, wiring)
        return Engine(
            self.model,
            wiring,
            Schedule.compile(wiring, microbatches),
            Optimizers(make_optimizers(self.optimizer, owned)),
            device=next(self.model.parameters()).device,
            autocast=self.autocast,
            recomputed=choose_recomputed(self.layers, recompute),
            host=host,
        )


class Breaks(NamedTuple):
    """Where layers cannot run again in one stretch.

    Attributes:
        before: layers that do not run on what the layer before has returned.
        within: layers that are no chain of calls, each on what the one before has returned.
    """

    before: frozenset[int]
    within: frozenset[int]


def find_breaks(network: Network) -> Breaks:
    """Where layers cannot run again in one stretch, as a step on fake tensors shows."""
    names = network.layers.names
    wiring = network.wire(Rule(credit=_train_everything), Partition.uniform(network.layers, 1))
    engine = network.make_engine(wiring, recompute=f"{names[0]}..{names[-1]}")
    with faked(engine, [], network.batch) as fake:
        fake.step()
        assert fake.engine.recompute is not None
        begun = set(fake.engine.recompute.begun)
    calls = [[(call.name, call.number) for call in own] for own in network.layers.calls]
    return Breaks(
        before=frozenset(i for i, own in enumerate(calls) if own and own[0] in begun),
        within=frozenset(i for i, own in enumerate(calls) if not own or begun & set(own[1:])),
    )


class LayerCosts:
    """The costs of a network's layers at one size of the batch. Each step runs when asked for.

    Args:
        network: what is measured.
        head: the rule whose heads losses have.
    """

    def __init__(self, network: Network, head: Rule = Rule()) -> None:  # noqa: B008 - it is frozen
        self.network, self.head = network, head
        self._readings: dict[tuple[str, bool], list[LayerReading]] = {}
        self._resting: int | None = None

    def read(self, kind: str, *, recomputed: bool = False) -> list[LayerReading]:
        """What each layer costs in a step of one kind.

        Args:
            kind: "whole", "beside", "alone", "linked", "passing" or "summed", as above.
            recomputed: whether every layer runs again.
        """
        key = kind, recomputed
        if key not in self._readings:
            self._readings[key] = self._run(kind, recomputed=recomputed)
        return self._readings[key]

    @property
    def resting(self) -> int:
        """Bytes that are alive between steps, without heads."""
        self.read("whole")
        assert self._resting is not None
        return self._resting

    def wire(self, kind: str) -> Wiring:
        """The wiring of a step of one kind.

        Raises:
            BadInput: the rule's heads cannot stand at each layer.
        """
        rule, layers = replace(self.head, credit=_CREDITS[kind]), self.network.layers
        network = self.network._replace(weight_gradients="once" if kind == "summed" else "each")
        return network.wire(rule, Partition.uniform(layers, len(layers)))

    def _run(self, kind: str, *, recomputed: bool) -> list[LayerReading]:
        engine = self.network.make_engine(self.wire(kind), recompute=recomputed)
        # All frames are found in the step that frees most, so that nothing else holds them; in
        # another, they hold the graphs of their tensors, too.
        frames = kind in ("alone", "linked") and not recomputed
        with faked(engine, [], self.network.batch) as fake:
            if not recomputed and kind in ("whole", "alone"):
                fake.step()  # makes the optimizer state, which is read with these
            with ExitStack() as stack:
                flops = stack.enter_context(FlopCounter())
                live = stack.enter_context(Meter(fake.list_held()))
                watcher = LayerWatcher(fake, live, flops, holding=kind == "beside", frames=frames)
                fake.step(watcher.observe)
                watcher.end_action()
        if kind == "whole" and not recomputed:
            self._resting = watcher.resting
        return watcher.readings


class ScaledCosts:
    """The costs at another size of the batch: every figure grows evenly with samples.

    Args:
        one: measured.
        other: the same with another number of samples.
        samples: the size that is wanted.
    """

    def __init__(self, one: LayerCosts, other: LayerCosts, samples: int) -> None:
        self._one, self._other = one, other
        first, second = one.network.batch.samples, other.network.batch.samples
        self._share = (samples - first) / (second - first)
        self._readings: dict[tuple[str, bool], list[LayerReading]] = {}

    def read(self, kind: str, *, recomputed: bool = False) -> list[LayerReading]:
        """As `LayerCosts.read`."""
        key = kind, recomputed
        if key not in self._readings:
            pairs = zip(
                self._one.read(kind, recomputed=recomputed),
                self._other.read(kind, recomputed=recomputed),
                strict=True,
            )
            self._readings[key] = [_scale(one, other, self._share) for one, other in pairs]
        return self._readings[key]


def _scale(one: Any, other: Any, share: float) -> Any:
    """A figure, or all figures of a record, between those of two sizes."""
    if isinstance(one, LayerReading):
        names = [each.name for each in fields(one)]
        return LayerReading(*(_scale(getattr(one, n), getattr(other, n), share) for n in names))
    if isinstance(one, tuple):
        return type(one)(*(_scale(a, b, share) for a, b in zip(one, other, strict=True)))
    if isinstance(one, dict):
        return {key: _scale(one[key], other[key], share) for key in one}
    if isinstance(one, int) and not isinstance(one, bool):
        return round(one + (other - one) * share)
    return one


def _train_back(reach: int) -> Credit:
    """Credit by which each loss trains its own module and so many before it."""

    def trains(loss: int, layer: int, module: int) -> Entry | None:
        return T if loss - reach <= module <= loss else None

    return lambda partition: make_table(partition, trains)


def _train_the_one_before(partition: Partition) -> CreditTable:
    """Each loss but the first and the last passes its own module, and trains the one before."""
    last = len(partition.modules) - 1

    def trains(loss: int, layer: int, module: int) -> Entry | None:
        trained = module == loss - 1 or module == loss == last
        return T if trained else Entry(train=False) if module == loss else None

    return make_table(partition, trains)


def _train_everything(partition: Partition) -> CreditTable:
    last = len(partition.modules) - 1
    return make_table(partition, lambda loss, layer, module: T if loss == last else None)


_CREDITS: dict[str, Credit] = {
    "whole": _train_everything,
    "beside": _train_everything,
    "alone": _train_back(0),
    "linked": _train_back(1),
    "passing": _train_the_one_before,
    "summed": _train_back(1),
}
