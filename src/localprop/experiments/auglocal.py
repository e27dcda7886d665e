"""AugLocal, and the baselines that its official code trains, with a module for each layer.

Source: Ma, Wu, Si, Tan, Scaling Supervised Local Learning with Augmented Auxiliary Networks, ICLR
2024, arXiv 2402.17318. Settings are those of the official code. The figures are second-hand:
reading notes quote them from the paper's tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.cuts import count_layers, find_equal_cuts
from localprop.experiments.recipe import Recipe, join_notes
from localprop.experiments.settings import (
    make_imagenet_setting,
    make_infopro_setting,
    notes_of_data,
)

PAPER = "Ma et al., AugLocal, ICLR 2024, arXiv 2402.17318"
EPOCHS = 400
DATA = ("cifar10", "svhn", "stl10")
DEPTHS = {"resnet32": (1, 2, 3, 5), "resnet110": (1, 2, 3, 5, 6)}
BASELINES = {
    "e2e": "end_to_end()",
    "dgl": "dgl(aux=MlpSrHead(linears=2, bias=False))",
    "infopro": "infopro(first={first}, last={last})",
    # Initial weights are those of AugLocal's code, not of PredSim's.
    "predsim": "Rule(aux=PooledHead(512, zeros=False), loss=Terms(("
    "Term(SimilarityLoss(redraw=True), 0.99), Term(CrossEntropy(), 0.01))))",
}
# InfoPro's weights of reconstruction and task at the first, and at the last local module.
WEIGHTS = {
    "resnet32": ((5, 0.05), (0.2, 0.5)),
    "resnet110": ((5, 0), (0.5, 1)),
}
# Accuracy in % on CIFAR-10 with ResNet-110, as reading notes quote the paper's table.
ACCURACIES = {"e2e": 94.61, "infopro": 86.95, "predsim": 74.95, "d6": 93.96}
# ImageNet: model, layer type of the auxiliary networks, epochs.
IMAGENET = {
    "resnet34": ("torchvision:resnet34", "basic", 200),
    "resnet101": ("torchvision:resnet101", "bottleneck", 90),
    "vgg13": ("vgg13:dropout=0.5", "conv", 90),
}
# By network and whether training is local.
IMAGENET_ACCURACIES = {
    ("resnet101", True): "top-1 accuracy 76.70 %",
    ("resnet101", False): "top-1 accuracy 77.34 %",
    ("vgg13", False): "top-1 accuracy 71.59 %",
}
QUOTED = "as quoted by others; best or last epoch is not stated"
SEED_NOTE = "The official code has the seed 1234, which gives other random numbers here."
TAIL_NOTE = (
    "The network's own loss trains the last {count} layers together, so there are effectively "
    "{modules} modules, not {layers}."
)
DGL_NOTE = (
    "AugLocal's code builds DGL's head with two hidden linear layers without bias. DGL's own head "
    "has three with bias."
)
DEVICES_NOTE = (
    "The paper trains on 8 GPUs with data parallelism, where BatchNorm sees an eighth of the batch."
)
DEPTH_READING = (
    "The depth of the auxiliary networks of this row is not stated. We take 4, the depth in "
    "ResNet-34's command; that is our reading."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    for network, depths in DEPTHS.items():
        for data in DATA:
            yield from (make_auglocal(network, data, depth) for depth in depths)
            yield from (make_baseline(network, data, row) for row in BASELINES)
    for network in IMAGENET:
        yield from (make_imagenet(network, local=local) for local in (False, True))


def make_auglocal(network: str, data: str, depth: int) -> Recipe:
    """A CIFAR ResNet with auxiliary networks; its last depth + 1 layers are one module."""
    layers = count_layers(network)
    config = replace(
        make_infopro_setting(data, EPOCHS),
        model=network,
        method=f"auglocal(depth={depth})",
        cuts=find_equal_cuts(network, layers),
    )
    published = (
        _format_published(f"d{depth}") if (network, data) == ("resnet110", "cifar10") else ""
    )
    tail = TAIL_NOTE.format(count=depth + 1, modules=layers - depth, layers=layers)
    notes = join_notes(tail, SEED_NOTE, notes_of_data(data))
    return Recipe(f"{network}_{data}_auglocal_d{depth}", config, PAPER, published, notes)


def make_baseline(network: str, data: str, row: str) -> Recipe:
    """A baseline of AugLocal's code: end-to-end, DGL, InfoPro (softmax) or PredSim."""
    first, last = WEIGHTS[network]
    method = BASELINES[row].format(first=first, last=last)
    config = replace(make_infopro_setting(data, EPOCHS), model=network, method=method)
    name = f"{network}_{data}_auglocal_baseline_{row}"
    if row == "e2e":
        config = replace(config, modules=1)
    else:
        k = count_layers(network)
        config = replace(config, cuts=find_equal_cuts(network, k))
        name += f"_k{k}"
    published = _format_published(row) if (network, data) == ("resnet110", "cifar10") else ""
    notes = join_notes(DGL_NOTE if row == "dgl" else "", SEED_NOTE, notes_of_data(data))
    return Recipe(name, config, PAPER, published, notes)


def make_imagenet(network: str, *, local: bool) -> Recipe:
    """ImageNet, end-to-end or with an auxiliary network of depth 4 at every layer but the last."""
    model, unit, epochs = IMAGENET[network]
    config = replace(make_imagenet_setting(epochs), model=model)
    if local:
        method = f"auglocal(depth=4, pyramid=0.0, joined=False, unit='{unit}')"
        config = replace(config, method=method)
    else:
        config = replace(config, method="end_to_end()", modules=1)
    accuracy = IMAGENET_ACCURACIES.get((network, local), "")
    published = f"{accuracy}, {QUOTED}" if accuracy else ""
    readings = DEPTH_READING if local and network != "resnet34" else ""
    name = f"{network}_imagenet_auglocal_{'d4' if local else 'baseline_e2e'}"
    return Recipe(name, config, PAPER, published, DEVICES_NOTE, readings)


def _format_published(row: str) -> str:
    return f"test accuracy {ACCURACIES[row]} %, {QUOTED}" if row in ACCURACIES else ""
