"""Data sets of the shapes that recipes have, all zeros: to show or to build a recipe whose data are not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localprop.errors import check
from localprop.training.config import Config, load_data, options_of

if TYPE_CHECKING:
    from localprop.data import Dataset

# Channels, side in pixels (0: the config's image_size), classes.
SHAPES = {
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "svhn": (3, 32, 10),
    "svhn_extra": (3, 32, 10),
    "stl10": (3, 96, 10),
    "mnist": (1, 28, 10),
    "fashion_mnist": (1, 28, 10),
    "kmnist": (1, 28, 10),
    "folder:imagenet": (3, 0, 1000),
    "folder:tiny-imagenet-200": (3, 0, 200),
}
GREY = (0.5,)  # mean and standard deviation where the config gives none: only their number matters


def blank(config: Config) -> Dataset:
    """A data set of the shape and classes of a config's, with one batch of black images in each split; a text is read.

    Raises:
        BadInput: as :func:`localprop.training.config.load_data`, for data of a shape that is not known, and for options that
            no data could be loaded with.

    Example:
        >>> blank(Config(data="stl10")).shape
        (3, 96, 96)
    """
    import torch

    from localprop.data import Augment, Images, Moments, Split

    if config.data not in SHAPES:
        return load_data(config)
    options = options_of(config)
    check(options.problems(config.data))
    chans, side, classes = SHAPES[config.data]
    size = side or config.image_size
    samples = max(1, config.batch_size)  # what is wrong with it is told when the learner is built
    images = torch.zeros((), dtype=torch.uint8).expand(samples, chans, size, size)
    split = Split(images, torch.zeros(samples, dtype=torch.int64))
    names = tuple(str(i) for i in range(classes))
    moments = options.moments_of(chans) or Moments(GREY * chans, GREY * chans)
    return Images(config.data, split, split, split, names, options.augmentation(Augment()), *moments)
