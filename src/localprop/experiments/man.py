"""MAN and MAN++: auxiliary networks that contain a moving average of the next module's layers.

MAN, MAN++ and HPFF share a code base, which is a fork of InfoPro's.

Sources: Su, Cai, Zhu, He, Xu, Guan, Si, Momentum Auxiliary Network for Supervised Local Learning,
ECCV 2024, arXiv 2407.05623; Su et al., MAN++, 2025, arXiv 2507.16279; official codes. The figures
are second-hand: reading notes quote them from the papers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.cuts import (
    HPFF_QUARTERS,
    IMAGENET_HALVES,
    IMAGENET_QUARTERS,
    find_equal_cuts,
    find_layer_numbers,
    find_layerwise_cuts,
)
from localprop.experiments.recipe import Recipe, join_notes
from localprop.experiments.settings import make_imagenet_setting, make_infopro_setting
from localprop.training.config import Config

PAPER = "Su et al., MAN, ECCV 2024, arXiv 2407.05623"
PLUS_PAPER = "Su et al., MAN++, 2025, arXiv 2507.16279"
EPOCHS = 400
# The number of modules that the papers call a module for each block.
LAYERWISE_MODULES = {"resnet32": 16, "resnet110": 55}
# Test error in % on CIFAR-10 of end-to-end training, and of DGL (man) and InfoPro (infopro_man)
# with MAN, by modules as the paper counts them.
END_TO_END = {"resnet32": 6.37, "resnet110": 5.42}
ERRORS = {
    ("resnet32", 8): {"man": 8.42, "infopro_man": 9.32},
    ("resnet32", 16): {"man": 9.11, "infopro_man": 9.65},
    ("resnet110", 32): {"man": 9.65, "infopro_man": 9.06},
    ("resnet110", 55): {"man": 9.73, "infopro_man": 9.77},
}
IMAGENET_ERRORS = {"resnet101": 21.73, "resnet152": 20.78}  # top-1, in %, 4 modules
# Weights of reconstruction and cross-entropy before ResNet stage 1, in the official command of
# InfoPro with MAN.
FIRST_WEIGHTS = (5.0, 0.5)
# The official codes' for features of 1,024 channels.
THIRD_STAGE_HEAD = "BottleneckHead((256, 256, 512, 2048))"
THIRD_STAGE_DECODER = "PixelReconstruction(gradual=(192, 64, 32))"
# InfoPro's, which MAN++ has for features of 512 channels.
SECOND_STAGE_HEAD = "BottleneckHead()"
SECOND_STAGE_DECODER = "PixelReconstruction(gradual=(128, 32))"
QUOTED = "as quoted by others; the official code tracks the best test epoch"
STEM_NOTE = (
    "The stem belongs to the first module, so the paper's {count} modules are {modules} modules "
    "here."
)
WEIGHTS_NOTE = (
    "In the official code, the weights of InfoPro's two losses depend on the ResNet stage of the "
    "next block. Here they change in equal steps from those of the first stage to those of the "
    "third."
)
HEAD_READING = (
    "The official repository has only InfoPro with MAN. The head of DGL's rows is not stated: 1c2f "
    "is our reading."
)
WEIGHTS_READING = (
    "The official command is for ResNet-32 in 16 modules. The same weights for this row are our "
    "reading."
)
CUTS_READING = (
    "The official repository has cuts for 1 and 2 modules, and in one commit (3eee558) for 4: "
    "those of HPFF, after layers {cuts}. MAN++ cuts after layers {plus_cuts}. HPFF's cuts for this "
    "row are our reading."
)
BATCH_READING = (
    "The official command is for ResNet-152 in 2 modules. Its batch size and learning rate for 4 "
    "modules are our reading."
)
AVERAGE_READING = (
    "The official code for ImageNet moves the average before the backward pass runs through it. "
    "Here it moves after that, as in the official code for CIFAR: that is our reading."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    yield from (make_end_to_end(network) for network in END_TO_END)
    for network, k in ERRORS:
        yield from (make_cifar10(network, k, row) for row in ("man", "infopro_man"))
    yield from (make_plus_cifar10(network) for network in LAYERWISE_MODULES)
    yield from (make_imagenet(network) for network in IMAGENET_ERRORS)
    for network in IMAGENET_HALVES:
        yield from (make_plus_imagenet(network, k) for k in (2, 4))


def make_end_to_end(network: str) -> Recipe:
    """Ordinary backpropagation for 400 epochs, the reference of the CIFAR-10 rows."""
    setting = make_infopro_setting("cifar10", EPOCHS)
    config = replace(setting, model=network, method="end_to_end()", modules=1)
    published = f"test error {END_TO_END[network]} %, {QUOTED}"
    return Recipe(f"{network}_cifar10_man_baseline_e2e", config, PAPER, published)


def make_cifar10(network: str, k: int, row: str) -> Recipe:
    """DGL (man) or InfoPro (infopro_man) with MAN."""
    published = f"test error {ERRORS[network, k][row]} %, {QUOTED}"
    name = f"{network}_cifar10_{row}_k{k}"
    if row == "man":
        config, stem_note = make_cifar10_setting(network, k, "man()")
        return Recipe(name, config, PAPER, published, stem_note, HEAD_READING)
    config, stem_note = make_cifar10_setting(network, k, _format_infopro_man(k))
    is_official_command = (network, k) == ("resnet32", 16)
    readings = "" if is_official_command else WEIGHTS_READING
    return Recipe(name, config, PAPER, published, join_notes(stem_note, WEIGHTS_NOTE), readings)


def _format_infopro_man(k: int) -> str:
    """InfoPro with MAN in k modules.

    The official code multiplies the first weights by 1 - s / (k - 2), where s is the ResNet stage
    of the next block, 1 to 3.
    """
    first, last = (
        [float(f"{weight * (1 - stage / (k - 2)):.4g}") for weight in FIRST_WEIGHTS]
        for stage in (1, 3)
    )
    pixels = f"Term(PixelReconstruction(), {first[0]}, {last[0]})"
    task = f"Term(CrossEntropy(), {first[1]}, {last[1]})"
    return f"man(aux=Head(convs=2), loss=Terms(({pixels}, {task})))"


def make_plus_cifar10(network: str) -> Recipe:
    """DGL with MAN++. Here the stem is a module, too."""
    modules = LAYERWISE_MODULES[network]
    setting = make_infopro_setting("cifar10", EPOCHS)
    cuts = find_equal_cuts(network, modules)
    config = replace(setting, model=network, method="man_plus()", cuts=cuts)
    return Recipe(f"{network}_cifar10_man_plus_k{modules}", config, PLUS_PAPER)


def make_imagenet(network: str) -> Recipe:
    """InfoPro with MAN in four modules."""
    loss = format_imagenet_loss(THIRD_STAGE_DECODER, 5.0)
    config = make_imagenet_quarters(network, f"man(aux={THIRD_STAGE_HEAD}, loss={loss})")
    plus_cuts = find_layer_numbers(network, IMAGENET_QUARTERS[network])
    cuts_reading = CUTS_READING.format(cuts=config.cuts, plus_cuts=plus_cuts)
    return Recipe(
        f"{network}_imagenet_infopro_man_k4",
        config,
        PAPER,
        f"top-1 error {IMAGENET_ERRORS[network]} %, as quoted by others",
        readings=join_notes(cuts_reading, BATCH_READING),
    )


def make_plus_imagenet(network: str, k: int) -> Recipe:
    """InfoPro with MAN++ in two or four modules.

    The head and the decoder are those of the next layer's ResNet stage: of two modules the second
    stage, of four also the third.
    """
    units = (IMAGENET_HALVES if k == 2 else IMAGENET_QUARTERS)[network]
    if (network, k) == ("resnext101_32x8d", 2):
        units = IMAGENET_HALVES["resnet101"]  # MAN++ cuts two blocks before InfoPro's cut
    aux, decoder = SECOND_STAGE_HEAD, SECOND_STAGE_DECODER
    if k == 4:
        aux = f"HeadByWidth(((512, {aux}), (1024, {THIRD_STAGE_HEAD})))"
        decoder = f"LossByWidth(((512, {decoder}), (1024, {THIRD_STAGE_DECODER})))"
    config = replace(
        make_imagenet_setting(),
        model=f"torchvision:{network}",
        method=f"man_plus(aux={aux}, loss={format_imagenet_loss(decoder, 5.0)})",
        cuts=find_layer_numbers(network, units),
    )
    return Recipe(f"{network}_imagenet_man_plus_k{k}", config, PLUS_PAPER, readings=AVERAGE_READING)


# --- shared with HPFF ---------------------------------------------------------------------------


def make_cifar10_setting(network: str, k: int, method: str) -> tuple[Config, str]:
    """The config of a network in k modules as the papers count them, and a note on the stem."""
    setting = make_infopro_setting("cifar10", EPOCHS)
    config = replace(setting, model=network, method=method)
    if k != LAYERWISE_MODULES[network]:
        return replace(config, cuts=find_equal_cuts(network, k)), ""
    cuts = find_layerwise_cuts(network, stem_is_module=False)
    return replace(config, cuts=cuts), STEM_NOTE.format(count=k, modules=len(cuts) + 1)


def format_imagenet_loss(decoder: str, reconstruction_weight: float) -> str:
    """The loss of the family's ImageNet codes."""
    return f"Terms((Term({decoder}, {reconstruction_weight}), Term(CrossEntropy(), 0.75)))"


def make_imagenet_quarters(network: str, method: str) -> Config:
    """HPFF's and MAN's setting in four modules."""
    return replace(
        make_imagenet_setting(),
        model=f"torchvision:{network}",
        method=method,
        lr=0.05,
        batch_size=128,
        cuts=find_layer_numbers(network, HPFF_QUARTERS),
    )
