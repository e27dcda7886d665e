"""Replayed steps have the peaks and the operations that engines on fake tensors read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import localprop as lp
from localprop.cost.flops import count_flops
from localprop.cost.layer_costs import LayerCosts, Network, ScaledCosts
from localprop.cost.memory import predict_memory
from localprop.cost.replay import replay
from localprop.cost.replayable import can_replay
from localprop.network.recomputed import choose_recomputed
from localprop.schedule.liveness import Liveness
from localprop.tasks.batch import Batch
from localprop.tasks.classification import Classification
from tests.helpers.reference import sgd

# One worker measures each network once.
pytestmark = pytest.mark.xdist_group("replay")

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet14": lp.models.resnet14,
    "transformer": lambda: lp.models.transformer_lm(20, 16, width=32, heads=2, blocks=5),
    "mlp": lambda: lp.models.mlp(48, (64, 64, 64, 64)),
}
STRETCHES = {
    "resnet14": ["relu..blocks.0,blocks.3..blocks.4", "relu..blocks.3(relu,blocks.1..blocks.2)"],
    "transformer": ["embed..blocks.0,blocks.2", "embed..blocks.3(blocks.0..blocks.2(blocks.0))"],
    "mlp": ["2..4", "2..6(4)"],
}
RULES = {
    "end to end": lp.end_to_end(),
    "greedy": lp.greedy(),
    "backlink": lp.backlink(),
    "interlocking": lp.interlocking(2),
}


def make_batch(name: str, samples: int) -> Batch:
    if name == "transformer":
        tokens = torch.zeros(samples, 16, dtype=torch.long)
        return Batch.of((tokens, tokens))
    inputs = torch.zeros(samples, *((3, 32, 32) if name == "resnet14" else (48,)))
    return Batch.of((inputs, torch.zeros(samples, dtype=torch.long)))


@cache
def measure(name: str, samples: int = 64) -> LayerCosts:
    torch.manual_seed(0)
    model, batch = MODELS[name](), make_batch(name, samples)
    task = Classification(dim=-1)
    layers = lp.layers_of(model, batch.data, task=task)
    return LayerCosts(Network(model, layers, task, batch, sgd))


def list_configurations() -> Iterator[tuple[str, str, int, Any, int]]:
    """Networks, rules, modules, recompute and micro-batches."""
    for name, stretches in STRETCHES.items():
        for recompute in (2, *stretches):
            yield name, "end to end", 1, recompute, 1
        yield name, "greedy", 2, stretches[0], 1
        for rule in RULES:
            for recompute, modules in ((False, 3), (True, 5)):
                yield name, rule, 1 if rule == "end to end" else modules, recompute, 1
            if name != "resnet14":  # BatchNorm sees parts of the batch there
                yield name, rule, 3, False, 4


@pytest.mark.parametrize(
    ("name", "rule", "modules", "recompute", "microbatches"), [*list_configurations()]
)
def test_peaks_and_operations(
    name: str, rule: str, modules: int, recompute: bool | int | str, microbatches: int
) -> None:
    costs = measure(name)
    network, layers = costs.network, costs.network.layers
    wiring = network.wire(RULES[rule], lp.Partition.uniform(layers, modules))
    engine = network.make_engine(wiring, recompute=recompute, microbatches=microbatches)
    recomputed = choose_recomputed(layers, recompute)
    if not can_replay(engine.wiring, recomputed):
        pytest.skip("figures of single layers do not say it; the engine reads such a step")
    at = costs if microbatches == 1 else ScaledCosts(costs, measure(name, 32), 16)
    found = replay(at, costs.resting, Liveness(engine.wiring, engine.schedule), recomputed)
    read = predict_memory(engine, [], network.batch)
    # What plans keep back: a thousandth, and one output of the network.
    outputs = layers.output_shape.numel() * 4
    excess = found.peak_bytes - read.peak_bytes
    assert -(read.peak_bytes / 1000 + outputs + 512) < excess < read.peak_bytes / 200 + outputs
    assert found.resting_bytes == read.resting_bytes
    assert found.flops == pytest.approx(count_flops(engine, [], network.batch), rel=1e-9)


def test_what_layers_alone_do_not_say_is_not_replayed() -> None:
    network = measure("resnet14").network
    halves = lp.Partition.uniform(network.layers, 2)
    assert not can_replay(network.wire(lp.contsup(), halves))
    assert can_replay(network.wire(lp.greedy(), halves))


class Shifted(nn.Module):
    """The forward's frame holds the sum, whose graph holds the output of `embed` before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 256)
        self.shift = nn.Parameter(torch.zeros(256))
        sizes = [*([256] * 4), 1024]
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(256, n), nn.Tanh(), nn.Linear(n, 256)) for n in sizes)
        )
        self.head = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.shift
        x = self.blocks(x)
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", ["greedy", "backlink", "interlocking"])
def test_graphs_of_what_frames_hold(rule: str) -> None:
    batch, task = make_batch("mlp", 512), Classification()
    model = Shifted()
    layers = lp.layers_of(model, batch.data)
    costs = LayerCosts(Network(model, layers, task, batch, sgd))
    wiring = costs.network.wire(RULES[rule], lp.Partition.uniform(layers, len(layers)))
    engine = costs.network.make_engine(wiring)
    found = replay(costs, costs.resting, Liveness(wiring, engine.schedule))
    read = predict_memory(engine, [], batch).peak_bytes
    assert found.peak_bytes == pytest.approx(read, rel=1e-3)
