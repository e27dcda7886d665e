"""DGL on ImageNet.

Source: Belilovsky, Eickenberg, Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, arXiv
1901.08164. Settings are those of the official code. The figures are second-hand: reading notes
quote them from the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.recipe import Recipe, join_notes
from localprop.training.config import Config

PAPER = "Belilovsky et al., DGL, ICML 2020, arXiv 1901.08164"
SETTING = Config(
    data="folder:imagenet",
    batch_size=256,
    lr=0.1,
    nesterov=False,
    epochs=50,
    lr_schedule="multistep",
    milestones=(10, 20, 30, 40),
    validation=0.0,
)
# Network, modules, last layers, top-1 and top-5 accuracy in %.
ROWS: tuple[tuple[str, int, tuple[int, ...], str], ...] = (
    ("vgg13", 1, (), "66.6 / 87.5"),
    ("vgg13", 4, (2, 5, 8), "67.8 / 88.0"),
    ("vgg13", 10, tuple(range(9)), ""),
    ("vgg19", 1, (), "69.7 / 89.7"),
    ("vgg19", 2, (7,), ""),
    ("vgg19", 4, (3, 7, 11), "69.2 / 89.0"),
    ("resnet152", 1, (), "74.4 / 92.1"),
    ("resnet152", 2, (25,), "74.5 / 92.0"),
)
QUOTED = "as quoted by others; best or last epoch is not stated"
NOTES = (
    "The official code trains in fp16. It creates its optimizer anew, with zero momentum, when the "
    "learning rate falls."
)
HEAD_NOTE = (
    "The official code pools the input of ResNet-152's head to a size that is halved once too "
    "often. Here it is a quarter of the features' size."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    yield from (make_imagenet(*row) for row in ROWS)


def make_imagenet(network: str, k: int, cuts: tuple[int, ...], accuracy: str) -> Recipe:
    """A network in k modules with DGL's own head each; end-to-end training for k = 1."""
    model = network if network.startswith("vgg") else f"torchvision:{network}"
    if k == 1:
        config = replace(SETTING, model=model, method="end_to_end()", modules=1)
        name = f"{network}_imagenet_dgl_baseline_e2e"
    else:
        # The official code draws linear layers from N(0, 0.01 squared) for VGGs alone.
        method = "dgl()" if network.startswith("vgg") else "dgl(aux=MlpSrHead())"
        config = replace(SETTING, model=model, method=method, cuts=cuts)
        name = f"{network}_imagenet_dgl_k{k}"
    published = f"top-1 / top-5 accuracy {accuracy} %, {QUOTED}" if accuracy else ""
    notes = join_notes(NOTES, HEAD_NOTE if (network, k) == ("resnet152", 2) else "")
    return Recipe(name, config, PAPER, published, notes)
