"""Where the papers cut their networks, as data.

The tables come from InfoPro's official code. ContSup, AugLocal, HPFF and MAN share them. They name
the last unit of each module except the final one by [ResNet stage, block], where stage 0 is the
stem. One unit is one layer of ours, so a table becomes a tuple of layer numbers, the form in which
`Config` takes `cuts`.

Source: Wang et al., Revisiting Locally Supervised Learning (InfoPro), ICLR 2021, arXiv 2101.10832,
official code.
"""

from __future__ import annotations

from itertools import accumulate

Units = tuple[tuple[int, int], ...]

# Residual blocks of each ResNet stage. The stem comes before them.
BLOCKS = {
    "resnet32": (5, 5, 5),
    "resnet110": (18, 18, 18),
    "resnet34": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnext101_32x8d": (3, 4, 23, 3),
}

# fmt: off
# Modules of equal numbers of layers. Only MAN uses the 32 modules of ResNet-110.
EQUAL_UNITS: dict[str, dict[int, Units]] = {
    "resnet32": {
        2: ((2, 1),),
        3: ((1, 4), (2, 4)),
        4: ((1, 2), (2, 1), (3, 0)),
        8: ((1, 0), (1, 2), (1, 4), (2, 1), (2, 3), (3, 0), (3, 2)),
        16: (
            (0, 0),
            (1, 0), (1, 1), (1, 2), (1, 3), (1, 4),
            (2, 0), (2, 1), (2, 2), (2, 3), (2, 4),
            (3, 0), (3, 1), (3, 2), (3, 3),
        ),
    },
    "resnet110": {
        2: ((2, 8),),
        3: ((1, 17), (2, 17)),
        4: ((1, 11), (2, 7), (3, 3)),
        8: ((1, 4), (1, 11), (2, 0), (2, 7), (2, 14), (3, 3), (3, 10)),
        16: (
            (1, 1), (1, 4), (1, 7), (1, 10), (1, 13), (1, 16),
            (2, 1), (2, 4), (2, 7), (2, 11), (2, 15),
            (3, 1), (3, 5), (3, 9), (3, 13),
        ),
        32: (
            (1, 1), (1, 2), (1, 4), (1, 5), (1, 7), (1, 9),
            (1, 11), (1, 13), (1, 14), (1, 16), (1, 17),
            (2, 1), (2, 2), (2, 4), (2, 5), (2, 7), (2, 9),
            (2, 11), (2, 13), (2, 14), (2, 16), (2, 17),
            (3, 1), (3, 3), (3, 4), (3, 6), (3, 7), (3, 9),
            (3, 11), (3, 13), (3, 15),
        ),
    },
}
# Modules of nearly equal memory: the rows with a star in InfoPro's and ContSup's tables. Only
# ContSup has ResNet-32's.
BALANCED_UNITS: dict[tuple[str, str], dict[int, Units]] = {
    ("resnet32", "cifar10"): {
        2: ((1, 3),),
        4: ((1, 2), (1, 4), (2, 2)),
        8: ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2)),
        16: EQUAL_UNITS["resnet32"][16],
    },
    ("resnet110", "cifar10"): {
        2: ((1, 14),),
        3: ((1, 9), (2, 2)),
        4: ((1, 6), (1, 14), (2, 8)),
    },
    ("resnet110", "stl10"): {
        2: ((1, 14),),
        3: ((1, 8), (2, 1)),
        4: ((1, 6), (1, 14), (2, 8)),
    },
}
# ImageNet: InfoPro's two modules, MAN++'s four, and the four of HPFF and MAN.
IMAGENET_HALVES: dict[str, Units] = {
    "resnet101": ((2, 0),),
    "resnet152": ((2, 5),),
    "resnext101_32x8d": ((2, 2),),
}
IMAGENET_QUARTERS: dict[str, Units] = {
    "resnet101": ((2, 2), (3, 8), (3, 16)),
    "resnet152": ((2, 6), (3, 13), (3, 25)),
    "resnext101_32x8d": ((2, 2), (3, 8), (3, 16)),
}
HPFF_QUARTERS: Units = ((3, 0), (3, 9), (3, 17))
# fmt: on


def find_layer_numbers(network: str, units: Units) -> tuple[int, ...]:
    """Convert units [ResNet stage, block] to layer numbers.

    Stages count from 1, and 0 is the stem. Blocks count from 0.

    Example:
        >>> find_layer_numbers("resnet101", ((0, 0), (1, 0), (2, 0)))
        (0, 1, 4)
    """
    blocks = BLOCKS[network]
    firsts = [0, *accumulate(blocks, initial=1)]  # the first layer of the stem and of each stage
    return tuple(firsts[stage] + block for stage, block in units)


def count_layers(network: str) -> int:
    """The number of layers of a ResNet: its stem and its blocks.

    Example:
        >>> count_layers("resnet110")
        55
    """
    return 1 + sum(BLOCKS[network])


def find_equal_cuts(network: str, modules: int) -> tuple[int, ...]:
    """The last layers of modules with equal numbers of layers.

    Example:
        >>> find_equal_cuts("resnet32", 4)
        (3, 7, 11)
    """
    if modules == count_layers(network):
        return find_layerwise_cuts(network)
    return find_layer_numbers(network, EQUAL_UNITS[network][modules])


def find_memory_balanced_cuts(network: str, data: str, modules: int) -> tuple[int, ...]:
    """The last layers of modules with nearly equal memory.

    Example:
        >>> find_memory_balanced_cuts("resnet110", "cifar10", 3)
        (10, 21)
    """
    return find_layer_numbers(network, BALANCED_UNITS[network, data][modules])


def find_layerwise_cuts(network: str, *, stem_is_module: bool = True) -> tuple[int, ...]:
    """The last layers of modules of one block each.

    The stem is a module of its own or joins the first block. The forks of InfoPro count 16 and 55
    modules in both cases.

    Example:
        >>> find_layerwise_cuts("resnet32", stem_is_module=False)[:3]
        (1, 2, 3)
    """
    return tuple(range(0 if stem_is_module else 1, count_layers(network) - 1))


def find_cuts_of_sizes(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The last layers of modules with the given numbers of blocks; the stem joins the first.

    The stem of a language model is its embedding.

    Example:
        >>> find_cuts_of_sizes((14, 14, 13, 13))
        (14, 28, 41)
    """
    return tuple(accumulate(sizes[:-1]))
