"""PredSim: VGG networks with a module for each convolution and hidden layer.

Source: Nøkland, Eidnes, Training Neural Networks with Local Error Signals, ICML 2019, arXiv 1901.06656; settings of the official
code, figures of its README.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from localprop.recipes.recipe import Recipe
from localprop.training.config import Config

PAPER = "Nøkland and Eidnes, PredSim, ICML 2019, arXiv 1901.06656"
LOSSES = ("e2e", "pred", "sim", "predsim")


@dataclass(frozen=True)
class Images:
    """How the official code trains on a data set: epochs, side of the cut square in pixels, the usual features, normalisation."""

    epochs: int
    hole: int
    features: int
    augment: str = "none"
    padding: str | None = None
    crop_pad: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    source: str = ""  # the data set's name for us, where the recipes' names have another


# fmt: off
DATA = {
    "cifar10": Images(400, 16, 2048, "crop,flip", "zeros", None, (0.424, 0.415, 0.384), (0.283, 0.278, 0.284)),
    "cifar100": Images(400, 16, 4096, "crop,flip", "zeros", None, (0.438, 0.418, 0.377), (0.300, 0.287, 0.294)),
    "svhn": Images(100, 16, 2048, mean=(0.431, 0.430, 0.446), std=(0.197, 0.198, 0.199), source="svhn_extra"),
    "stl10": Images(400, 48, 2048, mean=(0.447, 0.440, 0.407), std=(0.260, 0.257, 0.271)),
    "mnist": Images(100, 14, 1024, "crop", "zeros", 2, (0.1307,), (0.3081,)),
    "fashion_mnist": Images(200, 14, 1024, "crop,flip", "zeros", 2, (0.286,), (0.353,)),
    "kmnist": Images(100, 14, 1024, mean=(0.1904,), std=(0.3475,)),
}
# Network and width, data, dropout, test errors in % of end-to-end, pred, sim and predsim.
ROWS = (
    ("vgg8b", 1, "cifar10", 0.2, (5.99, 8.40, 7.16, 5.58)),
    ("vgg11b", 1, "cifar10", 0.2, (5.56, 8.39, 6.70, 5.30)),
    ("vgg11b", 2, "cifar10", 0.25, (4.91, 7.30, 6.66, 4.42)),
    ("vgg11b", 3, "cifar10", 0.3, (5.02, 7.37, 9.34, 3.97)),
    ("vgg8b", 1, "cifar100", 0.05, (26.24, 29.32, 32.64, 24.07)),
    ("vgg11b", 1, "cifar100", 0.05, (25.18, 29.58, 30.82, 24.05)),
    ("vgg11b", 2, "cifar100", 0.1, (23.44, 26.91, 28.03, 21.20)),
    ("vgg11b", 3, "cifar100", 0.15, (23.69, 25.90, 28.01, 20.13)),
    ("vgg8b", 1, "svhn", 0.3, (2.29, 2.12, 1.89, 1.74)),
    ("vgg8b", 1, "stl10", 0.1, (33.08, 26.83, 23.15, 20.51)),
    ("vgg8b", 1, "mnist", 0.2, (0.26, 0.40, 0.65, 0.31)),
    ("vgg8b", 1, "fashion_mnist", 0.1, (4.53, 5.66, 5.12, 4.65)),
    ("vgg8b", 2, "fashion_mnist", 0.2, (4.55, 5.11, 4.92, 4.33)),
    ("vgg8b", 1, "kmnist", 0.3, (1.53, 2.22, 2.19, 1.36)),
)
CUTOUT = (  # predsim alone, with a square cut out; dropout and error
    ("vgg11b", 3, "cifar10", 0.3, 3.60), ("vgg8b", 1, "svhn", 0.15, 1.65), ("vgg8b", 1, "stl10", 0.1, 19.25),
    ("vgg8b", 1, "mnist", 0.2, 0.26), ("vgg8b", 2, "fashion_mnist", 0.2, 4.14), ("vgg8b", 1, "kmnist", 0.15, 0.99),
)
MLPS = (  # width of three hidden layers, data, dropout, errors
    (1024, "mnist", 0.1, (0.75, 0.68, 0.80, 0.62)),
    (1024, "fashion_mnist", 0.025, (8.37, 8.60, 9.70, 8.54)),
    (1024, "kmnist", 0.2, (5.99, 7.26, 9.80, 7.33)),
    (3000, "cifar10", 0.1, (33.56, 32.33, 33.48, 30.93)),
    (3000, "cifar100", 0.025, (62.57, 58.87, 62.46, 56.88)),
)
# fmt: on
MILESTONES = {400: (200, 300, 350, 375), 200: (100, 150, 175, 188), 100: (50, 75, 89, 94)}  # by epochs
METHODS = {
    "e2e": "end_to_end()",
    "pred": "predsim(beta=0.0, features={features})",
    "sim": "predsim(beta=1.0, features={features})",
    "predsim": "predsim(beta=0.99, features={features})",
}
USUAL_FEATURES = 4096  # the official code's, of which the commands of wide networks say nothing else
FEW_CLASSES = "The official code shows 20 classes per batch until epoch 200; here batches have all 100."


def recipes() -> Iterator[Recipe]:
    """All of the family."""
    for network, times, data, dropout, errors in ROWS:
        for i, loss in enumerate(LOSSES):
            yield vgg(network, times, data, dropout, loss, errors[i])
    for network, times, data, dropout, error in CUTOUT:
        yield vgg(network, times, data, dropout, "predsim", error, cutout=True)
    for hidden, data, dropout, errors in MLPS:
        yield from (mlp(hidden, data, dropout, loss, error) for loss, error in zip(LOSSES, errors, strict=True))


def vgg(network: str, times: int, data: str, dropout: float, loss: str, error: float, cutout: bool = False) -> Recipe:
    """A VGG whose convolutions are so many times as wide, trained by one of the losses."""
    images, wide = DATA[data], times > 1
    features = USUAL_FEATURES if wide else images.features
    options = f"feat_mult={times},dropout={dropout},leaky={loss in ('sim', 'predsim')},zero_output={loss != 'e2e'}"
    config = replace(
        setting(data, lr=3e-4 if wide or data == "svhn" else 5e-4),
        model=f"{network}:{options}",
        method=METHODS[loss].format(features=features),
        modules=1 if loss == "e2e" else None,
    )
    if cutout:
        kinds = [kind for kind in (images.augment, "cutout") if kind != "none"]
        config = replace(config, augment=",".join(kinds), cutout=images.hole)
    name = f"{network}{f'_x{times}' if wide else ''}_{data}_{loss}{'_cutout' if cutout else ''}"
    return Recipe(name, config, PAPER, _published(error), notes=_few_classes(data, loss))


def mlp(hidden: int, data: str, dropout: float, loss: str, error: float) -> Recipe:
    """Three hidden layers of one width."""
    options = f"hidden=({hidden},{hidden},{hidden}),norm=True,leaky={loss in ('sim', 'predsim')},dropout={dropout}"
    config = replace(
        setting(data, 5e-4),
        model=f"mlp:{options},zero_output={loss != 'e2e'}",
        method=METHODS[loss].format(features=DATA[data].features),
        modules=1 if loss == "e2e" else None,
    )
    return Recipe(f"mlp_{data}_{loss}", config, PAPER, _published(error), notes=_few_classes(data, loss))


def _few_classes(data: str, loss: str) -> str:
    return FEW_CLASSES if data == "cifar100" and loss in ("sim", "predsim") else ""


def setting(data: str, lr: float) -> Config:
    """Adam in batches of 128, the learning rate divided by 4 after 50, 75, 89 and 94 % of the epochs."""
    images = DATA[data]
    return Config(
        data=images.source or data,
        batch_size=128,
        optimizer="adam",
        lr=lr,
        weight_decay=0.0,
        epochs=images.epochs,
        lr_schedule="multistep",
        milestones=MILESTONES[images.epochs],
        lr_factor=0.25,
        augment=images.augment,
        padding=images.padding,
        crop_pad=images.crop_pad,
        mean=images.mean,
        std=images.std,
        validation=0.0,
    )


def _published(error: float) -> str:
    return f"test error {error:.2f} %, in the README of the official code"
