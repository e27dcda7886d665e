"""Cuts of the papers, as the numbers of units of each module."""

from __future__ import annotations

import pytest

from localprop.experiments.cuts import count_layers, find_equal_cuts, find_memory_balanced_cuts

# As the papers count them, by network and number of modules.
EQUAL_SIZES = {
    ("resnet32", 2): [8, 8],
    ("resnet32", 3): [6, 5, 5],
    ("resnet32", 4): [4] * 4,
    ("resnet32", 8): [2] * 8,
    ("resnet32", 16): [1] * 16,
    ("resnet110", 2): [28, 27],
    ("resnet110", 4): [13, 14, 14, 14],
    ("resnet110", 8): [6] + [7] * 7,
    ("resnet110", 16): [3] * 9 + [4] * 7,
    ("resnet110", 32): [
        *(3, 1, 2, 1, 2, 2, 2, 2, 1, 2, 1),  # of 1 stem and 18 blocks
        *(2, 1, 2, 1, 2, 2, 2, 2, 1, 2, 1),
        *(2, 2, 1, 2, 1, 2, 2, 2, 2, 2),
    ],
    ("resnet110", 55): [1] * 55,
}
BALANCED_SIZES = {
    ("resnet110", "cifar10", 2): [16, 39],
    ("resnet110", "cifar10", 3): [11, 11, 33],
    ("resnet110", "cifar10", 4): [8, 8, 12, 27],
    ("resnet110", "stl10", 3): [10, 11, 34],
    ("resnet32", "cifar10", 8): [3, 1, 1, 3, 1, 4, 1, 2],
}


def find_sizes(cuts: tuple[int, ...], layers: int) -> list[int]:
    """The numbers of layers of modules with these last layers."""
    ends = [*(cut + 1 for cut in cuts), layers]
    return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@pytest.mark.parametrize(("network", "k"), EQUAL_SIZES)
def test_sizes_of_equal_modules(network: str, k: int) -> None:
    sizes = find_sizes(find_equal_cuts(network, k), count_layers(network))
    assert sizes == EQUAL_SIZES[network, k]


@pytest.mark.parametrize("key", BALANCED_SIZES, ids=str)
def test_sizes_of_balanced_modules(key: tuple[str, str, int]) -> None:
    sizes = find_sizes(find_memory_balanced_cuts(*key), count_layers(key[0]))
    assert sizes == BALANCED_SIZES[key]
