"""Training settings that several recipe families share, without method and cuts."""

from __future__ import annotations

from localprop.training.config import Config

BEST_OR_LAST = "best or last epoch is not stated"
STL_CLASSES = (
    "The official code gives STL-10 100 classes, because of a typo in the data set's name. This "
    "run has the 10 classes of STL-10, so its heads are smaller."
)
# CIFAR-10's mean and standard deviation, as the official code has them for CIFAR-100, too.
CIFAR_MOMENTS = (
    (125.3 / 255, 123.0 / 255, 113.9 / 255),
    (63.0 / 255, 62.1 / 255, 66.7 / 255),
)
CIFAR100_NOTE = (
    "CIFAR-100 is normalised by CIFAR-10's moments, as in InfoPro's code and in those based on it."
)

# 8 blocks of width 256, 6.5 million parameters: a size that trains on one small machine.
TEXT_SETTING = Config(
    model="transformer:width=256,heads=8,blocks=8",
    data="text",
    context=256,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.1,
    batch_size=32,
    epochs=20,
)


def make_infopro_setting(data: str, epochs: int = 160) -> Config:
    """The setting of InfoPro's official code, which ContSup and AugLocal share.

    SGD with Nesterov momentum and weight decay on all parameters. The learning rate follows a half
    cosine per epoch after 10 epochs of warm-up from 0.01 and is 0 in the last epoch. All training
    images are used, without a validation split. Normalisation and augmentation are the data set's
    defaults, but CIFAR-100 has CIFAR-10's normalisation.

    Example:
        >>> make_infopro_setting("stl10").batch_size
        128

    Source: Wang et al. 2021, arXiv 2101.10832, official code.
    """
    lr, batch_size = (0.1, 128) if data == "stl10" else (0.8, 1024)
    mean, std = CIFAR_MOMENTS if data == "cifar100" else (None, None)
    return Config(
        data=data,
        lr=lr,
        batch_size=batch_size,
        epochs=epochs,
        warmup_epochs=10,
        warmup_from=0.01,
        mean=mean,
        std=std,
        validation=0.0,
    )


def notes_of_data(data: str) -> str:
    """What differs from the official code for a data set, or is odd in it; empty if nothing is."""
    return {"stl10": STL_CLASSES, "cifar100": CIFAR100_NOTE}.get(data, "")


def make_imagenet_setting(epochs: int = 90) -> Config:
    """The ImageNet setting of InfoPro and AugLocal; the images are in the folder `imagenet`.

    The learning rate follows a half cosine per epoch from 0.4, without warm-up. The official code
    counts epochs from 0, so the last epoch still has a small positive learning rate.

    Example:
        >>> make_imagenet_setting().lr_schedule
        'cosine_above_zero'

    Source: Wang et al. 2021, arXiv 2101.10832, and Ma et al. 2024, arXiv 2402.17318, official code.
    """
    return Config(
        data="folder:imagenet",
        lr=0.4,
        batch_size=1024,
        epochs=epochs,
        lr_schedule="cosine_above_zero",
        warmup_epochs=0,
        validation=0.0,
    )
