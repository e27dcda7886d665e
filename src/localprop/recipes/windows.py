"""HPFF, MAN and MAN++, which share a code base; forks of InfoPro's.

Sources: Su, He, Zhu, Xu, Guan, Si, HPFF: Hierarchical Locally Supervised Learning with Patch Feature Fusion, ECCV 2024, arXiv
2407.05638; Su, Cai, Zhu, He, Xu, Guan, Si, Momentum Auxiliary Network for Supervised Local Learning, ECCV 2024, arXiv 2407.05623;
Su et al., MAN++, 2025, arXiv 2507.16279; official codes, figures as reading notes quote them from the papers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.recipes.recipe import Recipe, noted
from localprop.recipes.settings import imagenet_setting, infopro_setting
from localprop.recipes.tables import HPFF_QUARTERS, IMAGENET_HALVES, IMAGENET_QUARTERS, each_layer, equal, numbers_of
from localprop.training.config import Config

HPFF = "Su et al., HPFF, ECCV 2024, arXiv 2407.05638"
MAN = "Su et al., MAN, ECCV 2024, arXiv 2407.05623"
MAN_PLUS = "Su et al., MAN++, 2025, arXiv 2507.16279"
EPOCHS = 400
LAYERWISE = {"resnet32": 16, "resnet110": 55}  # what the papers call a module for each block
# Test error in % on CIFAR-10 of end-to-end, DGL with MAN, InfoPro and DGL with HPFF; by modules as the papers count them.
END_TO_END = {"resnet32": 6.37, "resnet110": 5.42}
MAN_ERRORS = {("resnet32", 8): 8.42, ("resnet32", 16): 9.11, ("resnet110", 32): 9.65, ("resnet110", 55): 9.73}
HPFF_ERRORS = {
    ("resnet32", 16): {"hpff": 8.99, "hpff_dgl": 8.94},
    ("resnet110", 55): {"hpff": 8.96, "hpff_dgl": 8.74},
}
HPFF_IMAGENET = {"resnet101": 21.14, "resnet152": 20.99, "resnext101_32x8d": 19.94}  # top-1 error in %, 4 modules
HPFF_METHODS = {
    "hpff": "hpff(counted={counted})",
    "hpff_dgl": "hpff(first=(0.0, 1.0), last=(0.0, 1.0), counted={counted})",
}
QUOTED = "as quoted by others; the official code tracks the best test epoch"
MERGED = "The stem belongs to the first module, so that the paper's {count} modules are {modules}."


def recipes() -> Iterator[Recipe]:
    """All of the family."""
    yield from (end_to_end(network) for network in END_TO_END)
    yield from (momentum(*row) for row in MAN_ERRORS)
    yield from (hierarchical(network, k, row) for network, k in HPFF_ERRORS for row in HPFF_METHODS)
    yield from (momentum_plus(network) for network in LAYERWISE)
    yield from (hpff_imagenet(network) for network in HPFF_IMAGENET)
    yield from (man_plus_imagenet(network, k) for network in IMAGENET_HALVES for k in (2, 4))


def end_to_end(network: str) -> Recipe:
    """Ordinary backpropagation for 400 epochs, the reference of the CIFAR-10 rows."""
    config = replace(infopro_setting("cifar10", EPOCHS), model=network, method="end_to_end()", modules=1)
    return Recipe(f"{network}_cifar10_man_baseline_e2e", config, MAN, f"test error {END_TO_END[network]} %, {QUOTED}")


def momentum(network: str, k: int) -> Recipe:
    """DGL with MAN."""
    config, merged = _cut(network, k, method="man()")
    own = "The head behind the momentum network is not known to us: 1c2f is our reading."
    published = f"test error {MAN_ERRORS[network, k]} %, {QUOTED}"
    return Recipe(f"{network}_cifar10_man_k{k}", config, MAN, published, noted(merged, own))


def hierarchical(network: str, k: int, row: str) -> Recipe:
    """InfoPro (hpff) or DGL (hpff_dgl) with HPFF."""
    config, merged = _cut(network, k, method=HPFF_METHODS[row].format(counted=k))
    own = (
        "What of DGL's row differs from InfoPro's is not known: no reconstruction is our reading."
        if "dgl" in row
        else ""
    )
    runs = "The official code runs every module two or three times per step and moves BatchNorm's statistics as often; here once."
    published = f"test error {HPFF_ERRORS[network, k][row]} %, {QUOTED}"
    return Recipe(f"{network}_cifar10_{row}_k{k}", config, HPFF, published, noted(merged, own, runs))


def momentum_plus(network: str) -> Recipe:
    """DGL with MAN++; the stem is a module, too."""
    config = replace(
        infopro_setting("cifar10", EPOCHS), model=network, method="man_plus()", cuts=equal(network, LAYERWISE[network])
    )
    return Recipe(
        f"{network}_cifar10_man_plus_k{LAYERWISE[network]}", config, MAN_PLUS, notes="No tables are known to us."
    )


def hpff_imagenet(network: str) -> Recipe:
    """InfoPro with HPFF in four modules."""
    method = "hpff(first=(5.0, 0.75), last=(5.0, 0.75), own=0.0001, aux=BottleneckHead())"
    config = replace(
        imagenet_setting(),
        model=f"torchvision:{network}",
        method=method,
        lr=0.05,
        batch_size=128,
        cuts=numbers_of(network, HPFF_QUARTERS),
    )
    notes = (
        "The official code leaves the modules' own losses out; here they have its default weight, 0.0001. The head, the form "
        "of the decoder, epochs and schedule are our reading."
    )
    published = f"top-1 error {HPFF_IMAGENET[network]} %, as quoted by others"
    return Recipe(f"{network}_imagenet_hpff_k4", config, HPFF, published, notes)


def man_plus_imagenet(network: str, k: int) -> Recipe:
    """MAN++ in two or four modules."""
    units = (IMAGENET_HALVES if k == 2 else IMAGENET_QUARTERS)[network]
    if (network, k) == ("resnext101_32x8d", 2):
        units = IMAGENET_HALVES["resnet101"]  # MAN++'s, where InfoPro cuts two blocks later
    config = replace(
        imagenet_setting(), model=f"torchvision:{network}", method="man_plus()", cuts=numbers_of(network, units)
    )
    notes = "The head for ImageNet is not known to us: that of CIFAR is our reading. No tables are known to us."
    return Recipe(f"{network}_imagenet_man_plus_k{k}", config, MAN_PLUS, notes=notes)


def _cut(network: str, k: int, method: str) -> tuple[Config, str]:
    """The setting with a network in k modules as the papers count them, and what is to be said of that."""
    config = replace(infopro_setting("cifar10", EPOCHS), model=network, method=method)
    if k == LAYERWISE[network]:
        cuts = each_layer(network, stem_apart=False)
        return replace(config, cuts=cuts), MERGED.format(count=k, modules=len(cuts) + 1)
    return replace(config, cuts=equal(network, k)), ""
