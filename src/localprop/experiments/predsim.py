"""PredSim: VGG networks and MLPs with a module for each convolution and hidden layer.

Source: Nøkland, Eidnes, Training Neural Networks with Local Error Signals, ICML 2019, arXiv
1901.06656. Settings are those of the official code, figures those of its README.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from localprop.experiments.recipe import Recipe
from localprop.training.config import Config

PAPER = "Nøkland and Eidnes, PredSim, ICML 2019, arXiv 1901.06656"
LOSSES = ("e2e", "pred", "sim", "predsim")


@dataclass(frozen=True)
class DataSetting:
    """How the official code trains on a data set.

    Attributes:
        epochs: of the run.
        hole: side in pixels of the square that Cutout removes.
        features: the default number of features of the prediction loss.
        augment: as in a config, and so are padding, crop_pad, mean and std.
        source: our name of the data set, where the recipes' names have another.
    """

    epochs: int
    hole: int
    features: int
    augment: str = "none"
    padding: str | None = None
    crop_pad: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    source: str = ""


# fmt: off
DATA = {
    "cifar10": DataSetting(
        400, 16, 2048, "crop,flip", "zeros", None, (0.424, 0.415, 0.384), (0.283, 0.278, 0.284),
    ),
    "cifar100": DataSetting(
        400, 16, 4096, "crop,flip", "zeros", None, (0.438, 0.418, 0.377), (0.300, 0.287, 0.294),
    ),
    "svhn": DataSetting(
        100, 16, 2048, mean=(0.431, 0.430, 0.446), std=(0.197, 0.198, 0.199), source="svhn_extra",
    ),
    "stl10": DataSetting(400, 48, 2048, mean=(0.447, 0.440, 0.407), std=(0.260, 0.257, 0.271)),
    "mnist": DataSetting(100, 14, 1024, "crop", "zeros", 2, (0.1307,), (0.3081,)),
    "fashion_mnist": DataSetting(200, 14, 1024, "crop,flip", "zeros", 2, (0.286,), (0.353,)),
    "kmnist": DataSetting(100, 14, 1024, mean=(0.1904,), std=(0.3475,)),
}
# Network, width factor, data, dropout, test errors in % of end-to-end, pred, sim and predsim.
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
# Predsim with Cutout: network, width factor, data, dropout, test error in %.
CUTOUT = (
    ("vgg11b", 3, "cifar10", 0.3, 3.60),
    ("vgg8b", 1, "svhn", 0.15, 1.65),
    ("vgg8b", 1, "stl10", 0.1, 19.25),
    ("vgg8b", 1, "mnist", 0.2, 0.26),
    ("vgg8b", 2, "fashion_mnist", 0.2, 4.14),
    ("vgg8b", 1, "kmnist", 0.15, 0.99),
)
# Width of three hidden layers, data, dropout, test errors in %.
MLPS = (
    (1024, "mnist", 0.1, (0.75, 0.68, 0.80, 0.62)),
    (1024, "fashion_mnist", 0.025, (8.37, 8.60, 9.70, 8.54)),
    (1024, "kmnist", 0.2, (5.99, 7.26, 9.80, 7.33)),
    (3000, "cifar10", 0.1, (33.56, 32.33, 33.48, 30.93)),
    (3000, "cifar100", 0.025, (62.57, 58.87, 62.46, 56.88)),
)
# fmt: on
# By number of epochs.
MILESTONES = {
    400: (200, 300, 350, 375),
    200: (100, 150, 175, 188),
    100: (50, 75, 89, 94),
}
METHODS = {
    "e2e": "end_to_end()",
    "pred": "predsim(beta=0.0, features={features})",
    "sim": "predsim(beta=1.0, features={features})",
    "predsim": "predsim(beta=0.99, features={features})",
}
# The official code's default, which the commands of wide networks do not change.
WIDE_FEATURES = 4096
CLASSES_NOTE = (
    "The official code shows 20 classes per batch until epoch 200; here batches have all 100."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    for network, width, data, dropout, errors in ROWS:
        for loss, error in zip(LOSSES, errors, strict=True):
            yield make_vgg(network, width, data, dropout, loss, error)
    for network, width, data, dropout, error in CUTOUT:
        yield make_vgg(network, width, data, dropout, "predsim", error, cutout=True)
    for hidden, data, dropout, errors in MLPS:
        for loss, error in zip(LOSSES, errors, strict=True):
            yield make_mlp(hidden, data, dropout, loss, error)


def make_vgg(
    network: str,
    width: int,
    data: str,
    dropout: float,
    loss: str,
    error: float,
    cutout: bool = False,
) -> Recipe:
    """A VGG whose convolutions have `width` times the usual channels, trained with one loss."""
    setting, is_wide = DATA[data], width > 1
    options = (
        f"feat_mult={width},dropout={dropout},leaky={loss in ('sim', 'predsim')},"
        f"zero_output={loss != 'e2e'}"
    )
    config = replace(
        make_setting(data, lr=3e-4 if is_wide or data == "svhn" else 5e-4),
        model=f"{network}:{options}",
        method=METHODS[loss].format(features=WIDE_FEATURES if is_wide else setting.features),
        modules=1 if loss == "e2e" else None,
    )
    if cutout:
        augment = "cutout" if setting.augment == "none" else f"{setting.augment},cutout"
        config = replace(config, augment=augment, cutout=setting.hole)
    width_suffix = f"_x{width}" if is_wide else ""
    name = f"{network}{width_suffix}_{data}_{loss}{'_cutout' if cutout else ''}"
    return Recipe(name, config, PAPER, _format_error(error), notes=_notes_of(data, loss))


def make_mlp(hidden: int, data: str, dropout: float, loss: str, error: float) -> Recipe:
    """Three hidden layers of one width."""
    options = (
        f"hidden=({hidden},{hidden},{hidden}),norm=True,leaky={loss in ('sim', 'predsim')},"
        f"dropout={dropout},zero_output={loss != 'e2e'}"
    )
    config = replace(
        make_setting(data, 5e-4),
        model=f"mlp:{options}",
        method=METHODS[loss].format(features=DATA[data].features),
        modules=1 if loss == "e2e" else None,
    )
    notes = _notes_of(data, loss)
    return Recipe(f"mlp_{data}_{loss}", config, PAPER, _format_error(error), notes=notes)


def make_setting(data: str, lr: float) -> Config:
    """Adam in batches of 128.

    The learning rate is divided by 4 after 50, 75, 89 and 94 % of the epochs.
    """
    setting = DATA[data]
    return Config(
        data=setting.source or data,
        batch_size=128,
        optimizer="adam",
        lr=lr,
        weight_decay=0.0,
        epochs=setting.epochs,
        lr_schedule="multistep",
        milestones=MILESTONES[setting.epochs],
        lr_factor=0.25,
        augment=setting.augment,
        padding=setting.padding,
        crop_pad=setting.crop_pad,
        mean=setting.mean,
        std=setting.std,
        validation=0.0,
    )


def _notes_of(data: str, loss: str) -> str:
    return CLASSES_NOTE if data == "cifar100" and loss in ("sim", "predsim") else ""


def _format_error(error: float) -> str:
    return f"test error {error:.2f} %, in the README of the official code"
