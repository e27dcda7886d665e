"""All-zero data sets in the shapes of the real ones.

With them, a run can be shown or built although its data are not on this machine.
"""

from __future__ import annotations

import torch

from localprop.data import Augment, Dataset, Images, Normalization, Split
from localprop.data.sources import TORCHVISION
from localprop.errors import check
from localprop.training.build import load_data, options_of
from localprop.training.config import Config

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
# Mean and standard deviation of a channel if the config has none. Only their number matters.
GREY = (0.5,)


def load_shape(config: Config) -> Dataset:
    """A data set in the shape of a config's: blank data for a name, and what a path leads to.

    The shape of a file or a folder is known only to itself, also where a recipe has such a folder.

    Raises:
        BadInput: as `make_blank_dataset`, or the file or folder does not exist.

    Example:
        >>> load_shape(Config(data="cifar100")).num_classes
        100
    """
    return make_blank_dataset(config) if config.data in TORCHVISION else load_data(config)


def make_blank_dataset(config: Config) -> Dataset:
    """A data set in the shape of a config's, with one batch of black images in each split.

    Text, and data of unknown shape, are loaded as usual.

    Raises:
        BadInput: for options that no data set accepts, and as `localprop.training.build.load_data`
            does for data of unknown shape.

    Example:
        >>> make_blank_dataset(Config(data="stl10")).shape
        (3, 96, 96)
    """
    if config.data not in SHAPES:
        return load_data(config)
    options = options_of(config)
    check(options.find_problems(config.data))
    channels, side, classes = SHAPES[config.data]
    size = side or config.image_size
    # A wrong batch size is reported when the learner is built.
    samples = max(1, min(config.batch_size, config.limit or config.batch_size))
    # One zero, expanded: 1024 images of ImageNet would take 154 MB.
    images = torch.zeros((), dtype=torch.uint8).expand(samples, channels, size, size)
    split = Split(images, torch.zeros(samples, dtype=torch.int64))
    class_names = tuple(str(i) for i in range(classes))
    normalization = options.normalization_for(channels)
    if normalization is None:
        normalization = Normalization(GREY * channels, GREY * channels)
    augment = options.choose_augment(Augment())
    return Images(config.data, split, split, split, class_names, augment, *normalization)
