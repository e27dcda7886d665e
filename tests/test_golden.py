"""Golden values of the papers' official code: partitions, heads, encoders, their parameters and multiply-accumulates."""

from __future__ import annotations

from functools import cache
from itertools import groupby

import pytest
import timm
import torch
import torchvision
from reference import tiny_vit
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import localprop as lp
from localprop.models import BasicBlock
from localprop.step.wiring import Wiring, wire

BLOCKS = {32: 5, 110: 18}  # per stage


@cache
def layers(depth: int) -> lp.Layers:
    with torch.device("meta"):
        return lp.layers_of(lp.models.cifar_resnet(depth), torch.zeros(2, 3, 32, 32))


@cache
def wiring(depth: int, rule: lp.Rule, modules: int) -> Wiring:
    with torch.device("meta"):
        return wire(
            rule, lp.Partition.uniform(layers(depth), modules), task=lp.CrossEntropy(), normalised=lp.Normalised()
        )


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def mmacs(module: nn.Module, shape: tuple[int, ...]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.to("meta").eval()(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() / 2e6


# --- layers -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "side", "count"),
    [
        (lp.models.resnet32, 32, 16),
        (lp.models.resnet110, 32, 55),
        (torchvision.models.resnet18, 64, 9),
        (torchvision.models.resnet34, 64, 17),
        (torchvision.models.resnet50, 64, 17),
        (lambda: timm.create_model("resnet18"), 64, 9),
        (tiny_vit, 32, 1 + 4),
        (lambda: timm.create_model("vit_tiny_patch16_224"), 224, 1 + 12),
    ],
)
def test_layer_counts(build: type[nn.Module], side: int, count: int) -> None:
    with torch.device("meta"):
        assert len(lp.layers_of(build(), torch.zeros(2, 3, side, side))) == count


# --- partitions -------------------------------------------------------------------------------------------------------------

# (depth, modules) -> sizes in layers, where the published tables put larger modules last
EQUAL = {
    (32, 2): [8, 8],
    (32, 4): [4] * 4,
    (32, 8): [2] * 8,
    (32, 16): [1] * 16,
    (110, 4): [13, 14, 14, 14],
    (110, 8): [6] + [7] * 7,
    (110, 16): [3] * 9 + [4] * 7,
}
# (depth, name) -> (stage, block) of the last layer of each module but the final one; stage 0 is the stem
PUBLISHED = {
    (32, "K=2"): ([(2, 1)], [8, 8]),
    (32, "K=3"): ([(1, 4), (2, 4)], [6, 5, 5]),
    (32, "K=4"): ([(1, 2), (2, 1), (3, 0)], [4] * 4),
    (32, "K=8"): ([(1, 0), (1, 2), (1, 4), (2, 1), (2, 3), (3, 0), (3, 2)], [2] * 8),
    (32, "K=8 balanced"): (
        [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2)],
        [3, 1, 1, 3, 1, 4, 1, 2],
    ),
    (110, "K=2"): ([(2, 8)], [28, 27]),
    (110, "K=4"): ([(1, 11), (2, 7), (3, 3)], [13, 14, 14, 14]),
    (110, "K=8"): ([(1, 4), (1, 11), (2, 0), (2, 7), (2, 14), (3, 3), (3, 10)], [6] + [7] * 7),
    (110, "K=2 balanced"): ([(1, 14)], [16, 39]),
    (110, "K=3 balanced"): ([(1, 9), (2, 2)], [11, 11, 33]),
    (110, "K=4 balanced"): ([(1, 6), (1, 14), (2, 8)], [8, 8, 12, 27]),
    (110, "K=3 balanced, STL-10"): ([(1, 8), (2, 1)], [10, 11, 34]),
}


@pytest.mark.parametrize(("depth", "modules"), EQUAL)
def test_uniform_partitions(depth: int, modules: int) -> None:
    partition = lp.Partition.uniform(layers(depth), modules)
    assert [len(module) for module in partition.modules] == EQUAL[depth, modules]


@pytest.mark.parametrize(("depth", "name"), PUBLISHED)
def test_published_partitions(depth: int, name: str) -> None:
    units, sizes = PUBLISHED[depth, name]
    indices = [(stage - 1) * BLOCKS[depth] + block if stage else -1 for stage, block in units]
    named = lp.Partition.at(layers(depth), ["relu" if i < 0 else f"blocks.{i}" for i in indices])
    assert [len(module) for module in named.modules] == sizes
    assert lp.Partition.at(layers(depth), [i + 1 for i in indices]) == named


def test_uneven_uniform_partitions_put_larger_modules_last() -> None:
    sizes = [len(module) for module in lp.Partition.uniform(layers(110), 2).modules]
    assert sizes == [27, 28]  # the published K=2 is 28, 27


# --- InfoPro's heads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("modules", "total"), [(2, 28_170), (4, 84_958), (8, 180_102), (16, 388_374)])
def test_1c2f_heads(modules: int, total: int) -> None:
    assert parameters(wiring(32, lp.greedy(), modules).heads) == total


def site(width: int) -> lp.Site:
    layer = {16: 0, 32: 6, 64: 11}[width]
    return lp.Site(layer, 16, layer, layers(32), layers(32).shapes[layer], 10)


def shape_of(head: nn.Module) -> list[object]:
    """Convolutions as (in, out, stride), linear layers as (in, out)."""
    return [
        (part.in_channels, part.out_channels, part.stride[0])
        if isinstance(part, nn.Conv2d)
        else (part.in_features, part.out_features)
        for part in head.modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    ]


@pytest.mark.parametrize(
    ("head", "width", "expected"),
    [
        (lp.Head(), 16, [(16, 32, 2), (32, 128), (128, 10)]),
        (lp.Head(), 32, [(32, 64, 2), (64, 128), (128, 10)]),
        (lp.Head(), 64, [(64, 64, 1), (64, 128), (128, 10)]),
        (lp.Head(0, 1), 16, [(16, 10)]),
        (lp.Head(0, 2), 16, [(16, 128), (128, 10)]),
        (lp.Head(1, 1), 32, [(32, 64, 2), (64, 10)]),
        (lp.Head(1, 3), 64, [(64, 64, 1), (64, 128), (128, 128), (128, 10)]),
        (lp.Head(2, 2), 16, [(16, 32, 2), (32, 32, 1), (32, 128), (128, 10)]),
        (lp.Head(1, 2, widen=2), 16, [(16, 64, 2), (64, 256), (256, 10)]),
        (lp.Head(1, 2, widen=2), 64, [(64, 128, 1), (128, 256), (256, 10)]),
    ],
    ids=str,
)
def test_heads_by_name(head: lp.Head, width: int, expected: list[object]) -> None:
    built = head(site(width))
    assert shape_of(built) == expected
    assert built(torch.zeros(2, *site(width).features[1:])).shape == (2, 10)
    convs = [part for part in built.modules() if isinstance(part, nn.Conv2d)]
    assert all(conv.bias is None and conv.kernel_size == (3, 3) for conv in convs)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in built.modules()) == len(convs)


# --- AugLocal's heads -------------------------------------------------------------------------------------------------------

# (depth of the network, d) -> (layer, [(position, width, stride), ...])
SAMPLED = {
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
    return [part for part in head.modules() if isinstance(part, BasicBlock)]


@pytest.mark.parametrize(("network", "depth"), SAMPLED)
def test_sampled_layers(network: int, depth: int) -> None:
    wired = wiring(network, lp.auglocal(depth), len(layers(network)))
    for layer, expected in SAMPLED[network, depth]:
        blocks = blocks_of(wired.heads[str(layer)]["aux"])
        positions = lp.SampledLayers.positions(layer, len(layers(network)), len(blocks))
        found = [(block.conv1.out_channels, block.conv1.stride[0]) for block in blocks]
        assert [(at, width, stride) for at, (width, stride) in zip(positions, found, strict=True)] == expected


@pytest.mark.parametrize(("network", "depth"), DEPTHS)
def test_depths_fall_with_the_pyramid(network: int, depth: int) -> None:
    modules = len(layers(network)) - depth  # the last depth + 1 are one
    aux = lp.SampledLayers(depth)
    found = [aux.depth_at(module, modules) for module in range(modules - 1)]
    assert [(value, len(list(same))) for value, same in groupby(found)] == DEPTHS[network, depth]


def test_the_last_layers_are_joined() -> None:
    wired = wiring(32, lp.auglocal(2), 16)
    assert wired.table.losses == (*range(13), 15)
    assert [list(segment.layers) for segment in wired.segments[-3:]] == [[13], [14], [15]]
    assert len({flow.losses for own in wired.flows[-3:] for flow in own}) == 1


@pytest.mark.parametrize("depth", [1, 2])
def test_only_heads_of_one_layer_normalise_before_the_classifier(depth: int) -> None:
    wired = wiring(32, lp.auglocal(depth), 16)
    norms = [any(isinstance(m, nn.BatchNorm1d) for m in head.modules()) for head in wired.heads.values()]
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
        found = lp.layers_of(torchvision.models.resnet34(), torch.zeros(2, 3, 64, 64))
        head = lp.SampledLayers(4, pyramid=0)(lp.Site(layer, 17, layer, found, found.shapes[layer], 1000))
    positions = lp.SampledLayers.positions(layer, 17, 4)
    blocks = [(block.conv1.out_channels, block.conv1.stride[0]) for block in blocks_of(head)]
    assert [(at, *block) for at, block in zip(positions, blocks, strict=True)] == expected


# (network, rule) -> parameters in millions and MMACs of all heads
COSTS = [
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
def test_costs_of_sampled_layers(network: int, rule: lp.Rule, millions: float | None, macs: float) -> None:
    wired, shapes = wiring(network, rule, len(layers(network))), layers(network).shapes
    if millions is not None:
        assert parameters(wired.heads) / 1e6 == pytest.approx(millions, abs=0.05 if millions > 10 else 0.005)
    total = sum(mmacs(wired.heads[str(k)]["aux"], shapes[k][1:]) for k in wired.table.losses[:-1])
    assert total == pytest.approx(macs, abs=0.6 if macs > 600 else 0.3)


# --- what AugLocal is compared with -----------------------------------------------------------------------------------------

# (network, rule) -> parameters in millions and MMACs of all auxiliary networks and losses, layer-wise
COMPARED = [
    (32, lp.dgl(lp.MlpSrHead(linears=2, bias=False)), 0.838, 1.5),
    (110, lp.dgl(lp.MlpSrHead(linears=2, bias=False)), 3.38, 5.7),
    (32, lp.predsim(features=512), 0.284, 35.5),
    (110, lp.predsim(features=512), 1.11, 127.7),
    (32, lp.infopro(), 0.449, 84.1),
    (110, lp.infopro(), 1.72, 319.7),
]


def local_mmacs(head: nn.Module, features: torch.Size) -> float:
    """Of a local loss and its auxiliary network, for one image."""
    head.to_empty(device="cpu").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        seen = lp.Seen(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64))
        head["loss"](torch.zeros(1, *features[1:]), head["aux"], seen)
    return counter.get_total_flops() / 2e6


@pytest.mark.parametrize(("network", "rule", "millions", "macs"), COMPARED)
def test_costs_of_the_others(network: int, rule: lp.Rule, millions: float, macs: float) -> None:
    wired, shapes = wiring(network, rule, len(layers(network))), layers(network).shapes
    assert parameters(wired.heads) / 1e6 == pytest.approx(millions, abs=0.0005 if millions < 1 else 0.005)
    assert sum(local_mmacs(wired.heads[str(k)], shapes[k]) for k in wired.table.losses[:-1]) == pytest.approx(
        macs, abs=0.06
    )


# --- ContSup's encoders -----------------------------------------------------------------------------------------------------

ENCODERS = [  # modules, E, R1 and R1E: an R1 encoder of the image itself is left out of R1E
    (2, 3_912, 192, 3_912),
    (4, 13_512, 2_944, 13_512 + 2_944 - 96),
    (8, 29_160, 8_960, 29_160 + 8_960 - 96),
    (16, 62_232, 21_808, 62_232 + 21_808 - 96),
]


@pytest.mark.parametrize(("modules", "raw", "previous", "both"), ENCODERS)
def test_encoder_parameters(modules: int, raw: int, previous: int, both: int) -> None:
    rules = [lp.contsup(True, 0), lp.contsup(False, 1), lp.contsup(True, 1)]
    assert [parameters(wiring(32, rule, modules).encoders) for rule in rules] == [raw, previous, both]


INFERENCE = [  # network, modules, image, previous, MMACs of the deployed network
    (32, 2, True, 0, 73.0),
    (32, 2, False, 1, 69.2),
    (32, 4, True, 0, 82.5),
    (32, 4, False, 1, 70.2),
    (32, 4, True, 1, 83.6),
    (32, 8, True, 0, 98.0),
    (32, 8, False, 1, 71.3),
    (32, 8, True, 1, 100.1),
    (32, 16, True, 0, 130.7),
    (32, 16, False, 1, 73.4),
    (32, 16, True, 1, 134.9),
    (32, 16, False, 2, 77.9),
    (32, 16, False, 4, 87.7),
    (32, 16, False, 8, 108.7),
    (32, 16, False, 16, 130.2),
    (110, 16, True, 1, 318.9),
]


@pytest.mark.parametrize(("network", "modules", "image", "previous", "expected"), INFERENCE)
def test_inference_costs_of_context(network: int, modules: int, image: bool, previous: int, expected: float) -> None:
    """Published partitions put the larger modules elsewhere only where they are not equal: not here."""
    with torch.device("meta"):
        model = lp.models.cifar_resnet(network)
        learner = lp.Learner(
            model,
            lp.contsup(image, previous),
            partition=lp.Partition.uniform(layers(network), modules),
            optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
            sample=torch.zeros(2, 3, 32, 32),
        )
    assert mmacs(learner.network, (3, 32, 32)) == pytest.approx(expected, abs=0.06)
