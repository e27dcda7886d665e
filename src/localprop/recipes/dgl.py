"""DGL on ImageNet.

Source: Belilovsky, Eickenberg, Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, arXiv 1901.08164; settings of the official
code, figures as reading notes quote them from the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.recipes.recipe import Recipe, noted
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
NOTES = "The official code trains in fp16 and makes its optimizer anew, without momentum so far, when the learning rate falls."
HEAD_SIZE = (
    "The official code pools ResNet-152's head to a size halved once too often; here it is a quarter of the features'. It draws "
    "the network's classifier from N(0, 0.01 squared), with biases of 0; here PyTorch does."
)


def recipes() -> Iterator[Recipe]:
    """All of the family."""
    yield from (imagenet(*row) for row in ROWS)


def imagenet(network: str, k: int, cuts: tuple[int, ...], accuracy: str) -> Recipe:
    """A network in k modules, each with DGL's own head; in one module end-to-end."""
    model = network if network.startswith("vgg") else f"torchvision:{network}"
    config = replace(SETTING, model=model, method="dgl()" if k > 1 else "end_to_end()")
    config = replace(config, cuts=cuts) if k > 1 else replace(config, modules=1)
    published = f"top-1 / top-5 accuracy {accuracy} %, as quoted by others; best or last epoch is not stated"
    name = f"{network}_imagenet_{f'dgl_k{k}' if k > 1 else 'dgl_baseline_e2e'}"
    notes = noted(NOTES, HEAD_SIZE if (network, k) == ("resnet152", 2) else "")
    return Recipe(name, config, PAPER, published if accuracy else "", notes)
