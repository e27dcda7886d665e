"""AugLocal, and the baselines that its official code trains beside it, with a module for each layer.

Source: Ma, Wu, Si, Tan, Scaling Supervised Local Learning with Augmented Auxiliary Networks, ICLR 2024, arXiv 2402.17318;
settings of the official code, figures as reading notes quote them from its tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.recipes.recipe import Recipe, noted
from localprop.recipes.settings import imagenet_setting, infopro_setting, noted_of
from localprop.recipes.tables import equal, layers_in

PAPER = "Ma et al., AugLocal, ICLR 2024, arXiv 2402.17318"
EPOCHS = 400
DATA = ("cifar10", "svhn", "stl10")
DEPTHS = {"resnet32": (1, 2, 3, 5), "resnet110": (1, 2, 3, 5, 6)}
BASELINES = {
    "e2e": "end_to_end()",
    "dgl": "dgl(aux=MlpSrHead(linears=2, bias=False))",
    "infopro": "infopro(first={first}, last={last})",
    "predsim": "predsim(beta=0.99, features=512)",
}
WEIGHTS = {"resnet32": ((5, 0.05), (0.2, 0.5)), "resnet110": ((5, 0), (0.5, 1))}  # InfoPro's, first and last
# Accuracy in % on CIFAR-10 with ResNet-110, as reading notes quote the paper's table.
ACCURACIES = {"e2e": 94.61, "infopro": 86.95, "predsim": 74.95, "d6": 93.96}
# ImageNet: model, layers, unit of the auxiliary networks, epochs.
IMAGENET = {
    "resnet34": ("torchvision:resnet34", "basic", 200),
    "resnet101": ("torchvision:resnet101", "bottleneck", 90),
    "vgg13": ("vgg13:dropout=0.5", "conv", 90),
}
IMAGENET_ACCURACIES = {
    ("resnet101", True): "top-1 accuracy 76.70 %",
    ("resnet101", False): "top-1 accuracy 77.34 %",
    ("vgg13", False): "top-1 accuracy 71.59 %",
}
QUOTED = "as quoted by others; best or last epoch is not stated"
SEED = "The official code has the seed 1234, which draws nothing alike here."
JOINED = (
    "The last {count} layers are trained together by the network's own loss: {modules} modules in effect, not {layers}."
)
TWO_LINEARS = (
    "Its code builds DGL's head with two hidden linear layers without bias, where DGL's own has three with bias."
)
DEVICES = "The paper trains on 8 GPUs with data parallelism: BatchNorm sees an eighth of the batch there."
CODE_DEPTH = (
    "The depth of the auxiliary networks of this row is not stated: that of ResNet-34's command, 4, is our reading."
)


def recipes() -> Iterator[Recipe]:
    """All of the family."""
    for network, depths in DEPTHS.items():
        for data in DATA:
            yield from (layer_wise(network, data, depth) for depth in depths)
            yield from (baseline(network, data, row) for row in BASELINES)
    yield from (imagenet(network, local=local) for network in IMAGENET for local in (False, True))


def layer_wise(network: str, data: str, depth: int) -> Recipe:
    """A CIFAR ResNet with auxiliary networks of so many layers, whose last depth + 1 layers are one module."""
    layers = layers_in(network)
    config = replace(
        infopro_setting(data, EPOCHS), model=network, method=f"auglocal(depth={depth})", cuts=equal(network, layers)
    )
    published = _published(f"d{depth}") if (network, data) == ("resnet110", "cifar10") else ""
    joined = JOINED.format(count=depth + 1, modules=layers - depth, layers=layers)
    return Recipe(f"{network}_{data}_auglocal_d{depth}", config, PAPER, published, noted(joined, SEED, noted_of(data)))


def baseline(network: str, data: str, row: str) -> Recipe:
    """What AugLocal's code compares with: end-to-end, DGL, InfoPro (softmax) and PredSim, a module for each layer."""
    first, last = WEIGHTS[network]
    k = layers_in(network)
    config = replace(infopro_setting(data, EPOCHS), model=network, method=BASELINES[row].format(first=first, last=last))
    config = replace(config, modules=1) if row == "e2e" else replace(config, cuts=equal(network, k))
    published = _published(row) if (network, data) == ("resnet110", "cifar10") else ""
    ending = "" if row == "e2e" else f"_k{k}"
    notes = noted(TWO_LINEARS if row == "dgl" else "", SEED, noted_of(data))
    return Recipe(f"{network}_{data}_auglocal_baseline_{row}{ending}", config, PAPER, published, notes)


def imagenet(network: str, *, local: bool) -> Recipe:
    """ImageNet, end-to-end or with an auxiliary network of depth 4 at every layer but the last."""
    model, unit, epochs = IMAGENET[network]
    method = f"auglocal(depth=4, pyramid=0.0, joined=False, unit='{unit}')" if local else "end_to_end()"
    config = replace(imagenet_setting(epochs), model=model, method=method, modules=None if local else 1)
    accuracy = IMAGENET_ACCURACIES.get((network, local), "")
    readings = CODE_DEPTH if local and network != "resnet34" else ""
    name = f"{network}_imagenet_auglocal_{'d4' if local else 'baseline_e2e'}"
    return Recipe(name, config, PAPER, f"{accuracy}, {QUOTED}" if accuracy else "", DEVICES, readings)


def _published(row: str) -> str:
    return f"test accuracy {ACCURACIES[row]} %, {QUOTED}" if row in ACCURACIES else ""
