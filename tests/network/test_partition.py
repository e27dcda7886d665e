"""Partitions: equal ones, those of the papers, and cuts that are refused."""

from __future__ import annotations

import pytest
import torch

import localprop as lp
from tests.helpers.cifar_resnets import find_layers

# --- partitions of the papers ---------------------------------------------------------------------

BLOCKS = {32: 5, 110: 18}  # per group of blocks with one width

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
# (depth, name) -> (group, block) of the last layer of each module but the final one; group 0 is the
# stem
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


def sizes_of(partition: lp.Partition) -> list[int]:
    return [len(module) for module in partition.modules]


@pytest.mark.parametrize(("depth", "modules"), EQUAL)
def test_uniform_partitions(depth: int, modules: int) -> None:
    partition = lp.Partition.uniform(find_layers(depth), modules)
    assert sizes_of(partition) == EQUAL[depth, modules]


@pytest.mark.parametrize(("depth", "name"), PUBLISHED)
def test_published_partitions(depth: int, name: str) -> None:
    last_blocks, sizes = PUBLISHED[depth, name]
    layers = find_layers(depth)
    indices = [(group - 1) * BLOCKS[depth] + block if group else -1 for group, block in last_blocks]
    named = lp.Partition.at(layers, ["relu" if i < 0 else f"blocks.{i}" for i in indices])
    assert sizes_of(named) == sizes
    assert lp.Partition.at(layers, [i + 1 for i in indices]) == named


def test_uneven_uniform_partitions_put_larger_modules_last() -> None:
    sizes = sizes_of(lp.Partition.uniform(find_layers(110), 2))
    assert sizes == [27, 28]  # the published K=2 is 28, 27


# --- what is refused ------------------------------------------------------------------------------

BAD_CUTS: list[tuple[list[str | int], str]] = [
    (
        ["blocks.0", "conv"],
        r"cannot be cut at 'conv': it is part of a layer\. Layers end at: relu, blocks\.0",
    ),
    (
        ["blocks.0.conv1"],
        r"cannot be cut at 'blocks\.0\.conv1': a path from the input to the output goes around it",
    ),
    (["blocks.3"], r"no module 'blocks\.3': did you mean blocks\."),
    (["zzz"], r"no module 'zzz': layers end at: relu, "),
    (["blocks.1", "blocks.0"], r"after blocks\.1, blocks\.0 must increase and lie between 0 and 2"),
    (["blocks.0", "blocks.0"], "must increase"),
    (["blocks.2"], "must increase and lie between 0 and 2"),
    (
        [0, 3],
        r"after 0, 3 must .* 0 and 2: .* after 0 \(relu\), 1 \(blocks\.0\), 2 \(blocks\.1\), "
        r"and ends with 3",
    ),
    ([-1], "after -1 must increase and lie between 0 and 2"),
]


def layers_of_resnet8() -> lp.Layers:
    return lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(("last", "message"), BAD_CUTS)
def test_bad_cuts(last: list[str | int], message: str) -> None:
    with pytest.raises(lp.BadInput, match=message):
        lp.Partition.at(layers_of_resnet8(), last)


def test_all_bad_names_at_once() -> None:
    with pytest.raises(lp.BadInput) as caught:
        lp.Partition.at(layers_of_resnet8(), ["conv", "zzz"])
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("modules", [0, -1, 5])
def test_bad_numbers_of_modules(modules: int) -> None:
    layers = layers_of_resnet8()
    expected = rf"modules={modules}, but the model has 4 layer\(s\).*choose between 1 and 4"
    with pytest.raises(lp.BadInput, match=expected):
        lp.Partition.uniform(layers, modules)
    with pytest.raises(lp.BadInput, match=r"cuts=\(4,\) must increase and lie between 1 and 3"):
        lp.Partition(layers, (4,))
