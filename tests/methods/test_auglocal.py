"""AugLocal: its auxiliary networks and their costs, against the official code and the paper."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import localprop as lp
from localprop.models import BasicBlock
from tests.helpers.cifar_resnets import (
    build_wiring,
    count_mmacs,
    count_parameters,
    find_layers,
    get_head,
)

# --- the sampled layers ---------------------------------------------------------------------------

# (depth of the network, d) -> (layer, [(position, width, stride), ...])
SAMPLED: dict[tuple[int, int], list[tuple[int, list[tuple[int, int, int]]]]] = {
    (32, 2): [
        (0, [(8, 32, 2), (15, 64, 2)]),
        (1, [(8, 32, 2), (15, 64, 2)]),
        (2, [(8, 32, 2), (15, 64, 2)]),
        (3, [(9, 32, 2), (15, 64, 2)]),
        (4, [(10, 32, 2), (15, 64, 2)]),
        (5, [(10, 32, 2), (15, 64, 2)]),
        (6, [(10, 32, 1), (15, 64, 2)]),
        (7, [(11, 64, 2), (15, 64, 1)]),
        (8, [(12, 64, 2), (15, 64, 1)]),
        (9, [(12, 64, 2), (15, 64, 1)]),
        (10, [(12, 64, 2), (15, 64, 1)]),
        (11, [(13, 64, 1), (15, 64, 1)]),
        (12, [(14, 64, 1), (15, 64, 1)]),
    ],
    (32, 1): [(layer, [(15, 64, 1 if layer > 10 else 2)]) for layer in range(14)],
    (110, 3): [
        (0, [(18, 16, 1), (36, 32, 2), (54, 64, 2)]),
        (5, [(21, 32, 2), (38, 64, 2), (54, 64, 1)]),
        (25, [(40, 64, 2), (54, 64, 1)]),
        (50, [(52, 64, 1), (54, 64, 1)]),
    ],
}
DEPTHS = {  # (depth of the network, d) -> [(depth of the head, how many), ...]
    (32, 1): [(1, 14)],
    (32, 2): [(2, 13)],
    (32, 3): [(3, 6), (2, 6)],
    (32, 4): [(4, 4), (3, 6), (2, 1)],
    (32, 5): [(5, 3), (4, 4), (3, 3)],
    (110, 2): [(2, 52)],
    (110, 3): [(3, 25), (2, 26)],
    (110, 4): [(4, 17), (3, 32), (2, 1)],
    (110, 5): [(5, 12), (4, 25), (3, 12)],
    (110, 6): [(6, 10), (5, 19), (4, 19)],
    (110, 7): [(7, 8), (6, 16), (5, 15), (4, 8)],
    (110, 8): [(8, 7), (7, 13), (6, 13), (5, 12), (4, 1)],
    (110, 9): [(9, 6), (8, 11), (7, 11), (6, 11), (5, 6)],
}


def blocks_of(head: nn.Module) -> list[BasicBlock]:
    return [module for module in head.modules() if isinstance(module, BasicBlock)]


def widths_and_strides(head: nn.Module) -> list[tuple[int, int]]:
    return [(block.conv1.out_channels, block.conv1.stride[0]) for block in blocks_of(head)]


@pytest.mark.parametrize(("network", "depth"), SAMPLED)
def test_sampled_layers(network: int, depth: int) -> None:
    count = len(find_layers(network))
    wiring = build_wiring(network, lp.auglocal(depth), count)
    for layer, expected in SAMPLED[network, depth]:
        found = widths_and_strides(get_head(wiring, layer)["aux"])
        positions = lp.SampledLayers.sample_positions(layer, count, len(found))
        assert [(at, *block) for at, block in zip(positions, found, strict=True)] == expected


@pytest.mark.parametrize(("network", "depth"), DEPTHS)
def test_depths_fall_with_the_pyramid(network: int, depth: int) -> None:
    modules = len(find_layers(network)) - depth  # the last depth + 1 are one
    aux = lp.SampledLayers(depth)
    found = [aux.depth_at(module, modules) for module in range(modules - 1)]
    assert [(value, len(list(same))) for value, same in groupby(found)] == DEPTHS[network, depth]


def test_the_last_layers_are_joined() -> None:
    wiring = build_wiring(32, lp.auglocal(2), 16)
    assert wiring.table.losses == (*range(13), 15)
    assert [list(segment.layers) for segment in wiring.segments[-3:]] == [[13], [14], [15]]
    assert len({flow.losses for flows in wiring.flows[-3:] for flow in flows}) == 1


@pytest.mark.parametrize("depth", [1, 2])
def test_only_heads_of_one_layer_normalise_before_the_classifier(depth: int) -> None:
    wiring = build_wiring(32, lp.auglocal(depth), 16)
    norms = [
        any(isinstance(module, nn.BatchNorm1d) for module in head.modules())
        for head in wiring.heads.values()
    ]
    assert norms[:-1] == [depth == 1] * (16 - depth - 1)


IMAGENET = [
    (0, [(4, 128, 2), (8, 256, 2), (12, 256, 1), (16, 512, 2)]),
    (5, [(8, 256, 2), (10, 256, 1), (13, 256, 1), (16, 512, 2)]),
    (13, [(14, 512, 2), (15, 512, 1), (16, 512, 1)]),
    (15, [(16, 512, 1)]),
]


@pytest.mark.parametrize(("layer", "expected"), IMAGENET)
def test_sampled_layers_of_resnet34(layer: int, expected: list[tuple[int, int, int]]) -> None:
    with torch.device("meta"):
        layers = lp.layers_of(torchvision.models.resnet34(), torch.zeros(2, 3, 64, 64))
        point = lp.AttachPoint(layer, 17, layer, layers, layers.shapes[layer], 1000)
        head = lp.SampledLayers(4, pyramid=0)(point)
    positions = lp.SampledLayers.sample_positions(layer, 17, 4)
    found = widths_and_strides(head)
    assert [(at, *block) for at, block in zip(positions, found, strict=True)] == expected


# --- their costs ----------------------------------------------------------------------------------

# (network, rule) -> parameters in millions and MMACs of all heads
COSTS: list[tuple[int, lp.Rule, float | None, float]] = [
    (32, lp.auglocal(1), 0.81, 104.9),
    (32, lp.auglocal(2), 1.34, 104.9),
    (32, lp.auglocal(3), 1.51, 123.7),
    (32, lp.auglocal(4), 1.71, 152.1),
    (32, lp.auglocal(5), 1.68, 172.0),
    (32, lp.auglocal(3, pyramid=0), None, 152.1),
    (32, lp.auglocal(4, pyramid=0), None, 189.8),
    (32, lp.auglocal(5, pyramid=0), None, 219.2),
    (110, lp.auglocal(2), 5.94, 432.0),
    (110, lp.auglocal(3), 7.24, 540.6),
    (110, lp.auglocal(4), 9.04, 724.6),
    (110, lp.auglocal(6), 12.5, 1031),
    (110, lp.auglocal(9), 16.1, 1428),
    (110, lp.auglocal(3, pyramid=0), None, 663),
    (110, lp.auglocal(6, pyramid=0), None, 1300),
    (110, lp.auglocal(9, pyramid=0), None, 1852),
]


@pytest.mark.parametrize(("network", "rule", "millions", "macs"), COSTS)
def test_costs_of_sampled_layers(
    network: int, rule: lp.Rule, millions: float | None, macs: float
) -> None:
    layers = find_layers(network)
    wiring = build_wiring(network, rule, len(layers))
    if millions is not None:
        tolerance = 0.05 if millions > 10 else 0.005
        assert count_parameters(wiring.heads) / 1e6 == pytest.approx(millions, abs=tolerance)
    total = sum(
        count_mmacs(get_head(wiring, k)["aux"], layers.shapes[k][1:])
        for k in wiring.table.losses[:-1]
    )
    assert total == pytest.approx(macs, abs=0.6 if macs > 600 else 0.3)


# --- the costs of the methods that the paper compares with ----------------------------------------

# (network, rule) -> parameters in millions and MMACs of all auxiliary networks and losses, one
# module per layer
COMPARED = [
    (32, lp.dgl(lp.MlpSrHead(linears=2, bias=False)), 0.838, 1.5),
    (110, lp.dgl(lp.MlpSrHead(linears=2, bias=False)), 3.38, 5.7),
    (32, lp.predsim(features=512), 0.284, 35.5),
    (110, lp.predsim(features=512), 1.11, 127.7),
    (32, lp.infopro(), 0.449, 84.1),
    (110, lp.infopro(), 1.72, 319.7),
]


def count_local_mmacs(head: nn.ModuleDict, features: torch.Size) -> float:
    """Millions of multiply-accumulates of a local loss and its auxiliary network, for one image."""
    head.to_empty(device="cpu").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        inputs = lp.LossInputs(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64))
        head["loss"](torch.zeros(1, *features[1:]), head["aux"], inputs)
    flops: int = counter.get_total_flops()
    return flops / 2e6


@pytest.mark.parametrize(("network", "rule", "millions", "macs"), COMPARED)
def test_costs_of_the_other_methods(
    network: int, rule: lp.Rule, millions: float, macs: float
) -> None:
    layers = find_layers(network)
    wiring = build_wiring(network, rule, len(layers))
    tolerance = 0.0005 if millions < 1 else 0.005
    assert count_parameters(wiring.heads) / 1e6 == pytest.approx(millions, abs=tolerance)
    total = sum(
        count_local_mmacs(get_head(wiring, k), layers.shapes[k]) for k in wiring.table.losses[:-1]
    )
    assert total == pytest.approx(macs, abs=0.06)
