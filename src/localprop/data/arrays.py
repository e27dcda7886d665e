"""Image classification data in memory: a training, a validation and a test split."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

HOLD_OUT_SEED = 0  # a constant: the validation images of a data set are the same in every run


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Args:
        images: (N, C, H, W), uint8 or float32; raw values, not normalised.
        labels: (N,), int64.

    Example:
        >>> len(Split(torch.zeros(5, 1, 8, 8), torch.zeros(5, dtype=torch.int64)))
        5
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Split":
        """The samples at `indices` (M,), in their order."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Augment:
    """Random crop after padding, and random horizontal flip; the default changes nothing.

    Args:
        pad: pixels added on each side before a crop of the image's own size; 0 crops nothing.
        reflect: pad by reflection instead of zeros (black).
        flip: mirror each image left to right with probability one half.

    Example:
        >>> Augment(pad=4, reflect=True, flip=True)  # CIFAR-10's
        Augment(pad=4, reflect=True, flip=True)
    """

    pad: int = 0
    reflect: bool = False
    flip: bool = False


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with what is needed to train on it.

    The validation split is for choosing and stopping, the test split for the figure that is reported.

    Args:
        name: for reports.
        train: the training split.
        validation: held out of the training images; may be empty.
        test: the test split.
        classes: one name per class.
        augment: how training images are augmented.
        mean: per channel, of values in 0..1 where the images are uint8.
        std: per channel, likewise.

    Example:
        >>> load("digits").shape
        (1, 8, 8)
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    augment: Augment
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        chans, height, width = self.train.images.shape[1:]
        return chans, height, width

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation per channel, on the scale of `as_float`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def as_float(images: Tensor) -> Tensor:
    """uint8 images on the scale 0..1, floating ones as they are; float32 of the same shape."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def assemble(
    name: str,
    train: Split,
    test: Split,
    classes: tuple[str, ...],
    *,
    augment: Augment,
    moments: Moments | None = None,
    limit: int | None = None,
    validation: float = 0.1,
) -> Dataset:
    """Hold the validation split out of the training images, apply the limit, and measure what is not given.

    Args:
        name: for reports.
        train: all training images, validation included.
        test: the test images.
        classes: one name per class.
        augment: how training images are augmented.
        moments: published mean and standard deviation; measured on the training split if None.
        limit: keep that many training images at most; validation and test stay whole.
        validation: share of the training images that is held out, per class.

    Example:
        >>> data = assemble("mine", Split(images, labels), test, ("a", "b"), augment=Augment())
    """
    kept, held_out = hold_out(train.labels, validation)
    training = train.select(kept)
    if limit is not None:
        training = training.select(first_per_class(training.labels, limit))
    found = moments or measure(training.images)
    return Dataset(name, training, train.select(held_out), test, classes, augment, mean=found.mean, std=found.std)


def hold_out(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Split indices into kept and held out, the same share of each class: a function of the labels alone.

    Of every class with two samples or more at least one is held out and one kept, unless the share is zero.

    Args:
        labels: (N,), int64.
        share: 0 <= share < 1 of each class to hold out.

    Returns:
        Indices kept (M,) and held out (N - M,), each ascending.

    Example:
        >>> kept, held_out = hold_out(torch.arange(1000) % 10, 0.1)
        >>> len(kept), len(held_out)
        (900, 100)
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(HOLD_OUT_SEED)
    for members in _members(labels):
        count = min(max(1, round(share * len(members))), len(members) - 1) if share > 0 else 0
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def first_per_class(labels: Tensor, limit: int) -> Tensor:
    """Indices (M,) of the first `limit` samples with equal shares of the classes, ascending.

    The first sample of each class is taken, then the second of each, and so on until there are enough.

    Example:
        >>> first_per_class(torch.tensor([0, 0, 0, 1, 0, 1]), 4).tolist()
        [0, 1, 3, 5]
    """
    turn = torch.empty_like(labels)
    for members in _members(labels):
        turn[members] = torch.arange(len(members))
    return turn.argsort(stable=True)[:limit].sort().values


def _members(labels: Tensor) -> Iterator[Tensor]:
    for label in sorted(set(labels.tolist())):
        yield torch.nonzero(labels == label).flatten()


def measure(images: Tensor) -> Moments:
    """Mean and standard deviation per channel of images (N, C, H, W); a constant channel has deviation 1.

    Example:
        >>> measure(torch.ones(2, 1, 4, 4))
        Moments(mean=(1.0,), std=(1.0,))
    """
    chans = images.shape[1]
    total, squares = torch.zeros(2, chans, dtype=torch.float64)
    for start in range(0, len(images), 1024):  # the whole set as float64 would take eight times its memory
        values = as_float(images[start : start + 1024]).double()
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = images.numel() // chans
    mean = (total / count).tolist()
    # squares / count - mean^2 loses all digits where the spread is tiny beside the mean: call that constant
    variance = [square / count - m * m for square, m in zip(squares.tolist(), mean, strict=True)]
    std = [math.sqrt(v) if v > 1e-12 * m * m else 1.0 for v, m in zip(variance, mean, strict=True)]
    return Moments(tuple(mean), tuple(std))
