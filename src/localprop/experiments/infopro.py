"""InfoPro and the baselines of its tables: end-to-end, linear heads (Greedy SL), DGL.

Source: Wang, Ni, Song, Yang, Huang, Revisiting Locally Supervised Learning: an Alternative to
End-to-end Training (InfoPro), ICLR 2021, arXiv 2101.10832. Partitions, weights and settings are
those of the official code, figures those of tables 2, 3 and 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.cuts import (
    IMAGENET_HALVES,
    find_equal_cuts,
    find_layer_numbers,
    find_memory_balanced_cuts,
)
from localprop.experiments.recipe import Recipe, join_notes
from localprop.experiments.settings import (
    BEST_OR_LAST,
    make_imagenet_setting,
    make_infopro_setting,
    notes_of_data,
)

PAPER = "Wang et al., InfoPro, ICLR 2021, arXiv 2101.10832"
# Of reconstruction and task at the first, and of both at the last local module.
Weights = tuple[float, float, float, float]

# fmt: off
WEIGHTS: dict[tuple[str, str], dict[int, Weights]] = {
    ("resnet32", "cifar10"): {
        2: (5, 1, 0, 0), 4: (6, 0, 1, 2), 8: (5, 0, 0, 2), 16: (5, 0.05, 0.2, 0.5),
    },
    ("resnet110", "cifar10"): {
        2: (5, 0.5, 0, 0), 4: (1, 0, 0, 1), 8: (5, 0, 0, 1), 16: (5, 0, 0.5, 1),
    },
    ("resnet110", "stl10"): {
        2: (10, 1, 0, 0), 4: (20, 0.2, 5, 2), 8: (20, 0.2, 5, 1), 16: (20, 0.5, 10, 0.1),
    },
    ("resnet110", "svhn"): {
        2: (1, 0.1, 0, 0), 4: (5, 0, 0.5, 1), 8: (5, 0, 0.5, 2), 16: (5, 0.2, 0.5, 1),
    },
}
# ResNet-110 in modules of nearly equal memory.
BALANCED_WEIGHTS: dict[str, dict[int, Weights]] = {
    "cifar10": {2: (5, 0.1, 0, 0), 3: (5, 0, 5, 0.1), 4: (5, 0, 5, 0.1)},
    "stl10": {2: (20, 1, 0, 0), 3: (20, 0.5, 5, 2), 4: (20, 0.5, 10, 1)},
}
# Tables 2 and 3: test errors in %, mean and standard deviation of 5 runs.
END_TO_END = {
    ("resnet32", "cifar10"): "7.37+-0.10",
    ("resnet110", "cifar10"): "6.50+-0.34",
    ("densenet_bc_100_12", "cifar10"): "4.61+-0.08",
    ("resnet110", "svhn"): "3.07+-0.23",
    ("resnet110", "stl10"): "22.27+-1.61",
}
# In each row: 2, 4, 8 and 16 modules.
ERRORS = {
    ("resnet32", "cifar10"): {
        "greedy": "10.30+-0.20 16.07+-0.46 21.19+-0.52 24.59+-0.83",
        "dgl": "8.69+-0.12 11.48+-0.20 14.17+-0.28 16.21+-0.36",
        "infopro_softmax": "8.13+-0.23 8.64+-0.25 11.40+-0.18 14.23+-0.42",
        "infopro_contrast": "7.76+-0.12 8.58+-0.17 11.13+-0.19 12.75+-0.11",
    },
    ("resnet110", "cifar10"): {
        "greedy": "8.21+-0.24 13.16+-0.28 15.61+-0.57 18.92+-1.27",
        "dgl": "7.70+-0.28 10.50+-0.11 12.46+-0.37 13.80+-0.15",
        "infopro_softmax": "7.01+-0.34 7.96+-0.06 9.40+-0.27 10.78+-0.28",
        "infopro_contrast": "6.42+-0.08 7.30+-0.14 8.93+-0.40 9.90+-0.19",
    },
    ("densenet_bc_100_12", "cifar10"): {
        "greedy": "5.10+-0.05 6.07+-0.21 8.21+-0.31 10.41+-0.42",
        "dgl": "4.86+-0.15 5.71+-0.04 6.82+-0.21 7.67+-0.16",
        "infopro_softmax": "4.79+-0.07 5.69+-0.21 6.44+-0.11 7.47+-0.21",
        "infopro_contrast": "4.74+-0.04 5.24+-0.25 5.86+-0.18 6.92+-0.16",
    },
    ("resnet110", "svhn"): {
        "greedy": "3.71+-0.16 5.39+-0.22 5.75+-0.10 6.37+-0.42",
        "dgl": "3.61+-0.16 4.97+-0.19 5.35+-0.13 5.55+-0.34",
        "infopro_softmax": "3.41+-0.08 3.72+-0.03 4.67+-0.07 5.14+-0.08",
        "infopro_contrast": "3.15+-0.03 3.28+-0.11 3.62+-0.11 3.91+-0.16",
    },
    ("resnet110", "stl10"): {
        "greedy": "25.56+-1.37 27.97+-0.75 29.07+-0.76 30.38+-0.39",
        "dgl": "24.96+-1.18 26.77+-0.64 27.33+-0.24 27.73+-0.58",
        "infopro_softmax": "21.02+-0.51 21.28+-0.27 23.60+-0.49 26.05+-0.71",
        "infopro_contrast": "20.99+-0.64 22.73+-0.40 25.15+-0.52 26.27+-0.48",
    },
}
# Test error in % and GB of a step.
BALANCED_ERRORS = {
    "cifar10": {2: ("6.41+-0.13", 5.38), 3: ("6.74+-0.12", 4.22), 4: ("6.93+-0.20", 3.52)},
    "stl10": {2: ("20.95+-0.57", 6.15), 3: ("21.00+-0.52", 4.96), 4: ("21.22+-0.72", 4.08)},
}
# Table 4, ImageNet in 2 modules: weights of reconstruction and task, then top-1 error in % and GB
# per GPU of end-to-end training and of InfoPro.
IMAGENET = {
    "resnet101": (5, 0.75, (22.03, 19.71), (21.85, 12.06)),
    "resnet152": (5, 1, (21.60, 26.29), (21.45, 15.53)),
    "resnext101_32x8d": (5, 0.75, (20.64, 19.22), (20.35, 11.55)),
}
# fmt: on
MODULES = (2, 4, 8, 16)
DENSENET_READING = (
    "The paper's cuts and weights of DenseNet are not known: equal division and ResNet-110's "
    "weights are our reading."
)
DGL_HEAD_READING = "The head of DGL's rows is not stated: 1c2f is our reading."
SVHN_NOTE = "SVHN's train split only, without its extra images."
DEVICES_NOTE = (
    "The paper trains on 8 GPUs with data parallelism, where BatchNorm sees an eighth of the batch."
)
RESNEXT_NOTE = (
    "The batch size is that of the official command. The published memory fits half of it: by "
    "localprop's prediction, end-to-end training takes 32 GB for the 128 images of each GPU, and "
    "17 GB for 64."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    for (network, data), rows in ERRORS.items():
        yield make_end_to_end(network, data)
        for row in rows:
            yield from (make_table_2(network, data, row, k) for k in MODULES)
    for data, modules in BALANCED_ERRORS.items():
        yield from (make_memory_balanced(data, k) for k in modules)
    for network in IMAGENET:
        yield from (make_imagenet(network, local=local) for local in (False, True))


def make_end_to_end(network: str, data: str) -> Recipe:
    """Ordinary backpropagation, the reference of all rows of the same network and data."""
    config = replace(make_infopro_setting(data), model=network, method="end_to_end()", modules=1)
    published = _format_error(END_TO_END[network, data])
    return Recipe(f"{network}_{data}_e2e", config, PAPER, published, notes=all_notes_of_data(data))


def make_table_2(network: str, data: str, row: str, k: int) -> Recipe:
    """A row of table 2: greedy, dgl, infopro_softmax or infopro_contrast in k modules."""
    is_dense = network == "densenet_bc_100_12"
    weights = WEIGHTS["resnet110" if is_dense else network, data][k]
    config = replace(make_infopro_setting(data), model=network, method=_method_of(row, weights))
    if is_dense:
        config = replace(config, modules=k)
    else:
        config = replace(config, cuts=find_equal_cuts(network, k))
    return Recipe(
        f"{network}_{data}_{row}_k{k}",
        config,
        PAPER,
        _format_error(ERRORS[network, data][row].split()[MODULES.index(k)]),
        notes=all_notes_of_data(data),
        readings=join_notes(
            DENSENET_READING if is_dense else "", DGL_HEAD_READING if row == "dgl" else ""
        ),
    )


def make_memory_balanced(data: str, k: int) -> Recipe:
    """ResNet-110 in modules of nearly equal memory (a star in table 3), contrastive loss."""
    config = replace(
        make_infopro_setting(data),
        model="resnet110",
        method=format_infopro(True, BALANCED_WEIGHTS[data][k]),
        cuts=find_memory_balanced_cuts("resnet110", data, k),
    )
    error, memory = BALANCED_ERRORS[data][k]
    whole_memory = "9.40" if data == "cifar10" else "10.77"
    published = (
        f"{_format_error(error)}; {memory} GB on one Titan Xp in fp32, end-to-end {whole_memory} GB"
    )
    name = f"resnet110_{data}_infopro_contrast_balanced_k{k}"
    return Recipe(name, config, PAPER, published, notes=notes_of_data(data))


def make_imagenet(network: str, *, local: bool) -> Recipe:
    """ImageNet, end-to-end or in two modules of nearly equal memory (table 4)."""
    reconstruction, task, whole, halves = IMAGENET[network]
    config = replace(make_imagenet_setting(), model=f"torchvision:{network}")
    if local:
        cuts = find_layer_numbers(network, IMAGENET_HALVES[network])
        decoder = "PixelReconstruction(gradual=(128, 32))"
        weights = f"first=({reconstruction}, {task})"
        method = f"infopro({weights}, aux=BottleneckHead(), decoder={decoder})"
        config = replace(config, method=method, cuts=cuts)
    else:
        config = replace(config, method="end_to_end()", modules=1)
    error, memory = halves if local else whole
    published = f"top-1 error {error:.2f} %, {memory} GB per GPU on 8 V100"
    name = f"{network}_imagenet_{'infopro_k2' if local else 'e2e'}"
    notes = join_notes(DEVICES_NOTE, RESNEXT_NOTE if network.startswith("resnext") else "")
    return Recipe(name, config, PAPER, published, notes=notes)


def format_infopro(contrast: bool, weights: Weights) -> str:
    """InfoPro's expression with weights that change from the first to the last local module."""
    return f"infopro(contrast={contrast}, first={weights[:2]}, last={weights[2:]})"


def _method_of(row: str, weights: Weights) -> str:
    if row == "greedy":
        return "greedy(aux=Head(convs=0, linears=1))"
    if row == "dgl":
        return "greedy(aux=Head(convs=1, linears=2))"
    return format_infopro(row == "infopro_contrast", weights)


def all_notes_of_data(data: str) -> str:
    """The notes of a data set, and which training images of SVHN are used."""
    return join_notes(SVHN_NOTE if data == "svhn" else "", notes_of_data(data))


def _format_error(figure: str) -> str:
    error = figure.replace("+-", " +- ")
    return f"test error {error} %, mean and standard deviation of 5 runs; {BEST_OR_LAST}"
