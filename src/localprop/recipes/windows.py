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
# Test error in % on CIFAR-10 of end-to-end, DGL and InfoPro with MAN and with HPFF; by modules as the papers count them.
END_TO_END = {"resnet32": 6.37, "resnet110": 5.42}
MAN_ERRORS = {
    ("resnet32", 8): {"man": 8.42, "infopro_man": 9.32},
    ("resnet32", 16): {"man": 9.11, "infopro_man": 9.65},
    ("resnet110", 32): {"man": 9.65, "infopro_man": 9.06},
    ("resnet110", 55): {"man": 9.73, "infopro_man": 9.77},
}
HPFF_ERRORS = {
    ("resnet32", 16): {"hpff": 8.99, "hpff_dgl": 8.94},
    ("resnet110", 55): {"hpff": 8.96, "hpff_dgl": 8.74},
}
HPFF_IMAGENET = {"resnet101": 21.14, "resnet152": 20.99, "resnext101_32x8d": 19.94}  # top-1 error in %, 4 modules
HPFF_METHODS = {
    "hpff": "hpff(counted={counted})",
    "hpff_dgl": "hpff(first=(0.0, 1.0), last=(0.0, 1.0), counted={counted})",
}
MAN_IMAGENET = {"resnet101": 21.73, "resnet152": 20.78}  # top-1 error in %, 4 modules
FIRST = (5.0, 0.5)  # of reconstruction and cross-entropy, in the official command of InfoPro with MAN, before stage 1
THIRD_STAGE_HEAD = "BottleneckHead((256, 256, 512, 2048))"  # the official codes' for 1024 channels
QUOTED = "as quoted by others; the official code tracks the best test epoch"
MERGED = "The stem belongs to the first module, so that the paper's {count} modules are {modules}."


def recipes() -> Iterator[Recipe]:
    """All of the family."""
    yield from (end_to_end(network) for network in END_TO_END)
    yield from (momentum(network, k, row) for network, k in MAN_ERRORS for row in ("man", "infopro_man"))
    yield from (hierarchical(network, k, row) for network, k in HPFF_ERRORS for row in HPFF_METHODS)
    yield from (momentum_plus(network) for network in LAYERWISE)
    yield from (hpff_imagenet(network) for network in HPFF_IMAGENET)
    yield from (man_imagenet(network) for network in MAN_IMAGENET)
    yield from (man_plus_imagenet(network, k) for network in IMAGENET_HALVES for k in (2, 4))


def end_to_end(network: str) -> Recipe:
    """Ordinary backpropagation for 400 epochs, the reference of the CIFAR-10 rows."""
    config = replace(infopro_setting("cifar10", EPOCHS), model=network, method="end_to_end()", modules=1)
    return Recipe(f"{network}_cifar10_man_baseline_e2e", config, MAN, f"test error {END_TO_END[network]} %, {QUOTED}")


def momentum(network: str, k: int, row: str) -> Recipe:
    """DGL (man) or InfoPro (infopro_man) with MAN."""
    infopro = row == "infopro_man"
    config, merged = _cut(network, k, method=infopro_man(k) if infopro else "man()")
    steps = (
        "The official code's weights of InfoPro's two losses are those of the stage of the block ahead; here they go in even "
        "steps from those of the first stage to those of the third."
    )
    head = "The official repository holds InfoPro with MAN alone: the head of DGL's rows is not stated, 1c2f is our reading."
    weights = (
        "The official command is that of ResNet-32 in 16 modules; that this row has the same weights is our reading."
    )
    reading = head if not infopro else "" if (network, k) == ("resnet32", 16) else weights
    published = f"test error {MAN_ERRORS[network, k][row]} %, {QUOTED}"
    notes = noted(merged, steps if infopro else "")
    return Recipe(f"{network}_cifar10_{row}_k{k}", config, MAN, published, notes=notes, readings=reading)


def infopro_man(k: int) -> str:
    """InfoPro with MAN in k modules: the official code divides the stage of the block ahead, 1 to 3, by k - 2."""
    spans = [[weight * (1 - stage / (k - 2)) for stage in (1, 3)] for weight in FIRST]
    (a, c), (b, d) = ([float(f"{weight:.4g}") for weight in span] for span in spans)
    return (
        f"man(aux=Head(convs=2), loss=Terms((Term(PixelReconstruction(), {a}, {c}), Term(CrossEntropy(), {b}, {d}))))"
    )


def hierarchical(network: str, k: int, row: str) -> Recipe:
    """InfoPro (hpff) or DGL (hpff_dgl) with HPFF."""
    config, merged = _cut(network, k, method=HPFF_METHODS[row].format(counted=k))
    own = "What of DGL's row differs from InfoPro's is not known: no reconstruction is our reading."
    runs = "The official code runs every module two or three times per step and moves BatchNorm's statistics as often; here once."
    published = f"test error {HPFF_ERRORS[network, k][row]} %, {QUOTED}"
    return Recipe(
        f"{network}_cifar10_{row}_k{k}",
        config,
        HPFF,
        published,
        notes=noted(merged, runs),
        readings=own if "dgl" in row else "",
    )


def momentum_plus(network: str) -> Recipe:
    """DGL with MAN++; the stem is a module, too."""
    config = replace(
        infopro_setting("cifar10", EPOCHS), model=network, method="man_plus()", cuts=equal(network, LAYERWISE[network])
    )
    return Recipe(f"{network}_cifar10_man_plus_k{LAYERWISE[network]}", config, MAN_PLUS)


def hpff_imagenet(network: str) -> Recipe:
    """InfoPro with HPFF in four modules; of the method the official code for ImageNet has the windows alone."""
    # Four times 5: the code sums the errors of the image's quarters, of which ours is the mean.
    loss = imagenet_terms(20.0)
    config = _imagenet_quarters(network, f"Rule(credit=Windows(size=2), aux={THIRD_STAGE_HEAD}, loss={loss})")
    notes = (
        "The official code leaves the modules' own losses out for ImageNet, and so does this run. Its decoder has widths of 128, "
        "64, 32 and 16 at 112, 56, 112 and 224 pixels, here 128, 32 and 12 at 56, 112 and 224. It runs every module twice per "
        "step and moves BatchNorm's statistics as often; here once."
    )
    published = f"top-1 error {HPFF_IMAGENET[network]} %, as quoted by others"
    return Recipe(f"{network}_imagenet_hpff_k4", config, HPFF, published, notes=notes)


def man_imagenet(network: str) -> Recipe:
    """InfoPro with MAN in four modules."""
    config = _imagenet_quarters(network, f"man(aux={THIRD_STAGE_HEAD}, loss={imagenet_terms(5.0)})")
    notes = (
        "The official decoder has widths of 192, 64, 32 and 12 at 28, 56, 112 and 224 pixels, here 128, 32 and 12 at 56, 112 "
        "and 224."
    )
    reading = (
        "The official command is of ResNet-152 in 2 modules; its batch and learning rate for 4 modules are our reading."
    )
    published = f"top-1 error {MAN_IMAGENET[network]} %, as quoted by others"
    return Recipe(f"{network}_imagenet_infopro_man_k4", config, MAN, published, notes=notes, readings=reading)


def man_plus_imagenet(network: str, k: int) -> Recipe:
    """InfoPro with MAN++ in two or four modules."""
    units = (IMAGENET_HALVES if k == 2 else IMAGENET_QUARTERS)[network]
    if (network, k) == ("resnext101_32x8d", 2):
        units = IMAGENET_HALVES["resnet101"]  # MAN++'s, where InfoPro cuts two blocks later
    method = f"man_plus(aux=BottleneckHead(), loss={imagenet_terms(5.0)})"
    config = replace(imagenet_setting(), model=f"torchvision:{network}", method=method, cuts=numbers_of(network, units))
    reading = "The head and the decoder for ImageNet are not known to us: InfoPro's are our reading."
    return Recipe(f"{network}_imagenet_man_plus_k{k}", config, MAN_PLUS, readings=reading)


def imagenet_terms(reconstruction: float) -> str:
    """The loss of the family's ImageNet codes, with a weight of the reconstruction."""
    return f"Terms((Term(PixelReconstruction(gradual=True), {reconstruction}), Term(CrossEntropy(), 0.75)))"


def _imagenet_quarters(network: str, method: str) -> Config:
    """HPFF's and MAN's four modules and setting."""
    cuts = numbers_of(network, HPFF_QUARTERS)
    return replace(
        imagenet_setting(), model=f"torchvision:{network}", method=method, lr=0.05, batch_size=128, cuts=cuts
    )


def _cut(network: str, k: int, method: str) -> tuple[Config, str]:
    """The setting with a network in k modules as the papers count them, and what is to be said of that."""
    config = replace(infopro_setting("cifar10", EPOCHS), model=network, method=method)
    if k == LAYERWISE[network]:
        cuts = each_layer(network, stem_apart=False)
        return replace(config, cuts=cuts), MERGED.format(count=k, modules=len(cuts) + 1)
    return replace(config, cuts=equal(network, k)), ""
