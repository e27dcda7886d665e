"""Interlocking backpropagation in the setting of the official code's example.

The paper's tables are not known to us.

Source: Gomez, Key, Perlin, Gou, Frosst, Dean, Gal, Interlocking Backpropagation: Improving
depthwise model-parallelism, JMLR 23(171), 2022, arXiv 2010.04116, official code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.recipe import Recipe
from localprop.training.config import Config

PAPER = "Gomez et al., Interlocking Backpropagation, JMLR 23(171), 2022, arXiv 2010.04116"
SETTING = Config(
    model="resnet34_cifar",
    data="cifar10",
    batch_size=128,
    lr=0.1,
    nesterov=False,
    weight_decay=2e-4,
    epochs=200,
    lr_schedule="multistep",
    milestones=(91, 136, 182),
    augment="crop,flip",
    padding="zeros",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2460, 0.2411, 0.2576),
)
HEAD = "ConvHead(convs=(128, 64))"
NOTES = (
    "The network is torchvision's ResNet-34 with a stem for small images (21.3 million "
    "parameters), which the official code calls ResNet-32. The example gives one block to each "
    "device but the last; the stem counts as the first block."
)
READINGS = (
    "The user chooses the number of devices: 4 and 8 are our reading. The paper's own numbers of "
    "modules, heads and learning rates are not known to us."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family: end-to-end, and local, pairwise and 3-wise in 4 and 8 modules."""
    yield make_example("e2e", "end_to_end()", 1)
    for k in (4, 8):
        for wise in (1, 2, 3):
            method = f"interlocking(wise={wise}, aux={HEAD})"
            yield make_example(f"interlocking_wise{wise}_k{k}", method, k)


def make_example(row: str, method: str, k: int) -> Recipe:
    """The example script on k devices."""
    config = replace(SETTING, method=method)
    config = replace(config, modules=1) if k == 1 else replace(config, cuts=tuple(range(k - 1)))
    return Recipe(f"resnet34_cifar10_{row}", config, PAPER, notes=NOTES, readings=READINGS)
