"""HPFF. Its code is a fork of InfoPro's and shares settings with MAN's.

Source: Su, He, Zhu, Xu, Guan, Si, HPFF: Hierarchical Locally Supervised Learning with Patch Feature
Fusion, ECCV 2024, arXiv 2407.05638; official codes. The figures are second-hand: reading notes
quote them from the paper.
"""

from __future__ import annotations

from collections.abc import Iterator

from localprop.experiments.man import (
    QUOTED,
    SECOND_STAGE_DECODER,
    THIRD_STAGE_HEAD,
    format_imagenet_loss,
    make_cifar10_setting,
    make_imagenet_quarters,
)
from localprop.experiments.recipe import Recipe, join_notes

PAPER = "Su et al., HPFF, ECCV 2024, arXiv 2407.05638"
# Test error in % on CIFAR-10 of InfoPro (hpff) and DGL (hpff_dgl) with HPFF, by modules as the
# paper counts them.
ERRORS = {
    ("resnet32", 16): {"hpff": 8.99, "hpff_dgl": 8.94},
    ("resnet110", 55): {"hpff": 8.96, "hpff_dgl": 8.74},
}
IMAGENET_ERRORS = {  # top-1, in %, 4 modules
    "resnet101": 21.14,
    "resnet152": 20.99,
    "resnext101_32x8d": 19.94,
}
METHODS = {
    "hpff": "hpff(official_modules={official_modules})",
    "hpff_dgl": "hpff(first=(0.0, 1.0), last=(0.0, 1.0), official_modules={official_modules})",
}
FORWARDS_NOTE = (
    "The official code runs every module two or three times per step and updates BatchNorm's "
    "statistics as often; here each module runs once."
)
DGL_READING = "How DGL's row differs from InfoPro's is not known: no reconstruction is our reading."
IMAGENET_NOTES = (
    "For ImageNet the official code leaves out the modules' own losses and keeps the windows, and "
    "so does this run. Its decoder has widths of 128, 64, 32 and 16 at 112, 56, 112 and 224 "
    "pixels. Ours has 128, 32 and 12 at 56, 112 and 224. The official code runs every module twice "
    "per step and updates BatchNorm's statistics as often; here each module runs once."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    for network, k in ERRORS:
        yield from (make_cifar10(network, k, row) for row in METHODS)
    yield from (make_imagenet(network) for network in IMAGENET_ERRORS)


def make_cifar10(network: str, k: int, row: str) -> Recipe:
    """InfoPro (hpff) or DGL (hpff_dgl) with HPFF."""
    config, stem_note = make_cifar10_setting(network, k, METHODS[row].format(official_modules=k))
    return Recipe(
        f"{network}_cifar10_{row}_k{k}",
        config,
        PAPER,
        f"test error {ERRORS[network, k][row]} %, {QUOTED}",
        notes=join_notes(stem_note, FORWARDS_NOTE),
        readings=DGL_READING if row == "hpff_dgl" else "",
    )


def make_imagenet(network: str) -> Recipe:
    """InfoPro with HPFF in four modules. For ImageNet the official code has only the windows."""
    # 20 is four times 5: the official code sums the losses of the image's four quarters, and our
    # reconstruction loss is their mean.
    loss = format_imagenet_loss(SECOND_STAGE_DECODER, 20.0)
    method = f"Rule(credit=WindowCredit(size=2), aux={THIRD_STAGE_HEAD}, loss={loss})"
    config = make_imagenet_quarters(network, method)
    published = f"top-1 error {IMAGENET_ERRORS[network]} %, as quoted by others"
    return Recipe(f"{network}_imagenet_hpff_k4", config, PAPER, published, notes=IMAGENET_NOTES)
