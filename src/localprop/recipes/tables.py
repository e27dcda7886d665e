"""Where the papers cut their networks, as data.

The tables of InfoPro's official code, which ContSup, AugLocal, HPFF and MAN share, name the last unit of each module but the
final one by [stage, block]; stage 0 is the stem. A unit is one of our layers, so the tables are converted to numbers of layers,
which is what :class:`~localprop.training.config.Config` takes as `cuts`.

Source: Wang et al., Revisiting Locally Supervised Learning (InfoPro), ICLR 2021, arXiv 2101.10832, official code.
"""

from __future__ import annotations

from itertools import accumulate

Units = tuple[tuple[int, int], ...]

BLOCKS = {  # residual blocks of each stage; the stem comes before them
    "resnet32": (5, 5, 5),
    "resnet110": (18, 18, 18),
    "resnet34": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnext101_32x8d": (3, 4, 23, 3),
}

# fmt: off
EQUAL: dict[str, dict[int, Units]] = {
    "resnet32": {
        2: ((2, 1),),
        3: ((1, 4), (2, 4)),
        4: ((1, 2), (2, 1), (3, 0)),
        8: ((1, 0), (1, 2), (1, 4), (2, 1), (2, 3), (3, 0), (3, 2)),
        16: ((0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (3, 0), (3, 1), (3, 2),
             (3, 3)),
    },
    "resnet110": {
        2: ((2, 8),),
        3: ((1, 17), (2, 17)),
        4: ((1, 11), (2, 7), (3, 3)),
        8: ((1, 4), (1, 11), (2, 0), (2, 7), (2, 14), (3, 3), (3, 10)),
        16: ((1, 1), (1, 4), (1, 7), (1, 10), (1, 13), (1, 16), (2, 1), (2, 4), (2, 7), (2, 11), (2, 15), (3, 1), (3, 5),
             (3, 9), (3, 13)),
        32: ((1, 1), (1, 2), (1, 4), (1, 5), (1, 7), (1, 9), (1, 11), (1, 13), (1, 14), (1, 16), (1, 17), (2, 1), (2, 2), (2, 4),
             (2, 5), (2, 7), (2, 9), (2, 11), (2, 13), (2, 14), (2, 16), (2, 17), (3, 1), (3, 3), (3, 4), (3, 6), (3, 7), (3, 9),
             (3, 11), (3, 13), (3, 15)),  # MAN's alone
    },
}
# Modules of nearly equal memory: InfoPro's and ContSup's rows with a star. ResNet-32's are ContSup's alone.
BALANCED: dict[tuple[str, str], dict[int, Units]] = {
    ("resnet32", "cifar10"): {
        2: ((1, 3),),
        4: ((1, 2), (1, 4), (2, 2)),
        8: ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2)),
        16: EQUAL["resnet32"][16],
    },
    ("resnet110", "cifar10"): {2: ((1, 14),), 3: ((1, 9), (2, 2)), 4: ((1, 6), (1, 14), (2, 8))},
    ("resnet110", "stl10"): {2: ((1, 14),), 3: ((1, 8), (2, 1)), 4: ((1, 6), (1, 14), (2, 8))},
}
# ImageNet: InfoPro's two modules, MAN++'s four, and the four of HPFF and MAN.
IMAGENET_HALVES: dict[str, Units] = {"resnet101": ((2, 0),), "resnet152": ((2, 5),), "resnext101_32x8d": ((2, 2),)}
IMAGENET_QUARTERS: dict[str, Units] = {
    "resnet101": ((2, 2), (3, 8), (3, 16)),
    "resnet152": ((2, 6), (3, 13), (3, 25)),
    "resnext101_32x8d": ((2, 2), (3, 8), (3, 16)),
}
HPFF_QUARTERS: Units = ((3, 0), (3, 9), (3, 17))
# fmt: on


def numbers_of(network: str, units: Units) -> tuple[int, ...]:
    """Units [stage, block] as numbers of layers; stages count from 1 with 0 for the stem, blocks from 0.

    Example:
        >>> numbers_of("resnet101", ((0, 0), (1, 0), (2, 0)))
        (0, 1, 4)
    """
    return tuple(stage and 1 + sum(BLOCKS[network][: stage - 1]) + block for stage, block in units)


def layers_in(network: str) -> int:
    """The layers of a ResNet: a stem and its blocks.

    Example:
        >>> layers_in("resnet110")
        55
    """
    return 1 + sum(BLOCKS[network])


def equal(network: str, modules: int) -> tuple[int, ...]:
    """The last layers of modules of equal numbers of layers; with a module for each layer there is no need for a table.

    Example:
        >>> equal("resnet32", 4)
        (3, 7, 11)
    """
    return each_layer(network) if modules == layers_in(network) else numbers_of(network, EQUAL[network][modules])


def balanced(network: str, data: str, modules: int) -> tuple[int, ...]:
    """The last layers of modules of nearly equal memory.

    Example:
        >>> balanced("resnet110", "cifar10", 3)
        (10, 21)
    """
    return numbers_of(network, BALANCED[network, data][modules])


def each_layer(network: str, *, stem_apart: bool = True) -> tuple[int, ...]:
    """The last layers where every block is a module, and the stem too, or else part of the first one.

    The forks of InfoPro count 16 and 55 modules either way.

    Example:
        >>> each_layer("resnet32", stem_apart=False)[:3]
        (1, 2, 3)
    """
    return tuple(range(0 if stem_apart else 1, layers_in(network) - 1))


def ends(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The last layers of modules of so many blocks; the stem joins the first.

    Example:
        >>> ends((14, 14, 13, 13))
        (14, 28, 41)
    """
    return tuple(accumulate(sizes[:-1]))
