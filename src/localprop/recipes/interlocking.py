"""Interlocking backpropagation: the setting of the official code's example. The paper's tables are not known to us.

Source: Gomez, Key, Perlin, Gou, Frosst, Dean, Gal, Interlocking Backpropagation: Improving depthwise model-parallelism,
JMLR 23(171), 2022, arXiv 2010.04116, official code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.recipes.recipe import Recipe
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
    "The network is torchvision's ResNet-34 with a stem for small images (21.3 million parameters), which the official code "
    "calls ResNet-32. The example gives one block, the stem being the first, to each device but the last."
)
READINGS = (
    "The number of devices is the user's: 4 and 8 are our reading. The paper's own numbers of modules, heads and learning rates "
    "are not known to us."
)


def recipes() -> Iterator[Recipe]:
    """All of the family: local, pairwise, 3-wise and end-to-end in 4 and 8 modules."""
    yield example("e2e", "end_to_end()", 1)
    for k in (4, 8):
        yield from (example(f"interlocking_wise{n}", f"interlocking(wise={n}, aux={HEAD})", k) for n in (1, 2, 3))


def example(row: str, method: str, k: int) -> Recipe:
    """The example script on k devices."""
    config = replace(SETTING, method=method)
    config = replace(config, modules=1) if k == 1 else replace(config, cuts=tuple(range(k - 1)))
    ending = "" if k == 1 else f"_k{k}"
    return Recipe(f"resnet34_cifar10_{row}{ending}", config, PAPER, notes=NOTES, readings=READINGS)
