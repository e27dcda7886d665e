"""Training settings that several papers share, each without model, method and cuts."""

from __future__ import annotations

from localprop.training.config import Config

BEST_OR_LAST = "best or last epoch is not stated"
STL_CLASSES = (
    "The official code gives STL-10 100 classes, by a typing error in the data set's name; here it has its 10, so that heads "
    "are smaller."
)


def infopro_setting(data: str, epochs: int = 160) -> Config:
    """The setting of InfoPro's official code, which ContSup and AugLocal share; normalisation and augmentation are the data's.

    SGD with Nesterov's momentum, weight decay on all parameters, half a cosine per epoch after 10 epochs of warm-up, so that
    the last epoch has a learning rate of 0; all training images, without a validation split.

    Example:
        >>> infopro_setting("stl10").batch_size
        128

    Source: Wang et al. 2021, arXiv 2101.10832, official code.
    """
    lr, batch_size = (0.1, 128) if data == "stl10" else (0.8, 1024)
    return Config(data=data, lr=lr, batch_size=batch_size, epochs=epochs, warmup_epochs=10, validation=0.0)


def noted_of(data: str) -> str:
    """What is to be said of a data set in this setting."""
    return STL_CLASSES if data == "stl10" else ""


def imagenet_setting(epochs: int = 90) -> Config:
    """The ImageNet setting of InfoPro and AugLocal: half a cosine per epoch from 0.4 without warm-up, in folder `imagenet`.

    Epochs are counted from 0, so that the last one has a small learning rate left.

    Example:
        >>> imagenet_setting().lr_schedule
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
