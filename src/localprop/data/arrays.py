"""Image classification data in memory: a training, a validation and a test split."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from localprop.data.augment import Augment, augmented, cut_out, cutout_problems
from localprop.data.dataset import Moments, generator_of

HOLD_OUT_SEED = 0  # a constant: the validation images of a data set are the same in every run
MOST_HELD_BYTES = 2**32  # of a split on an accelerator; larger ones stay in the host's memory, and batches are moved


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

    def on(self, device: torch.device) -> "Split":
        """The same samples in the memory of a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Images:
    """A data set of images in memory, with what is needed to train on it.

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

    unit = "images"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        chans, height, width = self.train.images.shape[1:]
        return chans, height, width

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def moments(self) -> Moments:
        """How inputs are made from pixels."""
        return Moments(self.mean, self.std)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Images (count, C, H, W), float32, and labels (count,), int64: zeros."""
        return torch.zeros(count, *self.shape), torch.zeros(count, dtype=torch.int64)

    def problems(self, *, augment: bool) -> list[str]:
        """Why no batches can be made: a reflection wider than the images, a cutout as large as they are."""
        if not augment:
            return []
        pad, (_, height, width) = self.augment.pad, self.shape
        problems = cutout_problems(self.augment, height, width)
        if self.augment.reflect and pad >= min(height, width):
            problems.append(
                f"The images are {height}x{width}, but reflection by {pad} pixels needs more than that on each"
                " side: crop less, or not at all."
            )
        return problems

    def reader(self, split: str, *, augment: bool, seed: int, device: torch.device) -> "ImageReader":
        """What makes batches of the split of this name."""
        return ImageReader(
            getattr(self, split), self.augment if augment else Augment(), self.moments, seed=seed, device=device
        )


class ImageReader:
    """Batches of images, augmented and normalised on the device, to which the split is moved once if it is not too large.

    Args:
        split: the samples.
        augment: what to do to them.
        moments: to normalise by.
        seed: of augmentation.
        device: where batches are made.
    """

    def __init__(self, split: Split, augment: Augment, moments: Moments, *, seed: int, device: torch.device) -> None:
        moved = device.type != "cpu" and split.images.nbytes <= MOST_HELD_BYTES
        self.split = split.on(device) if moved else split
        self.held_bytes = self.split.images.nbytes + self.split.labels.nbytes if moved else 0
        self.augment = augment
        self.seed = seed
        self.device = device
        self._mean, self._std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in moments)

    def epoch(self, number: int, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images (N, C, H, W), float32, and labels (N,), int64, for each tensor of indices (N,)."""
        count = len(self.split)
        draws = torch.rand(count, 3, generator=generator_of("augment", self.seed, number))
        spots = torch.rand(count, 2, generator=generator_of("cutout", self.seed, number))
        for indices in batches:
            place = indices.to(self.split.images.device)
            images = self.split.images[place].to(self.device)
            if self.augment.pad or self.augment.flip:
                images = augmented(images, self.augment, draws[indices])
            inputs = (as_float(images) - self._mean) / self._std
            if self.augment.cutout:
                inputs = cut_out(inputs, self.augment.cutout, spots[indices])
            yield inputs, self.split.labels[place].to(self.device)


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
) -> Images:
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
    return Images(name, training, train.select(held_out), test, classes, augment, mean=found.mean, std=found.std)


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
