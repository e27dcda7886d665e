"""Image classification data in memory: a training, a validation and a test split."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from localprop.data.augment import Augment, crop_and_flip, cut_out, find_cutout_problems
from localprop.data.dataset import SPLITS, Normalization, hash_all, make_generator
from localprop.errors import BadInput

HOLD_OUT_SEED = 0  # A constant: every run holds out the same validation images.
# A split is copied to an accelerator if it has no more bytes than this. Otherwise it stays in host
# memory, and batches are moved one by one.
MAX_HELD_BYTES = 2**32


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Args:
        images: (N, C, H, W), uint8 or float32. Raw values, not normalised.
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
        """Select the samples at `indices` (M,), in their order."""
        return Split(self.images[indices], self.labels[indices])

    def take(self, count: int) -> "Split":
        """Keep at most so many samples, with equal shares of the classes."""
        return self.select(select_per_class(self.labels, count))

    def to(self, device: torch.device) -> "Split":
        """Move the samples to the memory of a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Images:
    """A data set of images in memory, with what training needs to know about it.

    Args:
        name: the name in reports.
        train: the training split.
        validation: held out of the training images. It may be empty.
        test: the test split.
        classes: one name per class.
        augment: the augmentation of training images.
        mean: mean per channel, of values in 0..1 if the images are uint8.
        std: standard deviation per channel, likewise.

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
    notes: ClassVar[tuple[str, ...]] = ()

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
    def normalization(self) -> Normalization:
        """How inputs are computed from pixels."""
        return Normalization(self.mean, self.std)

    def fingerprint(self) -> dict[str, Any]:
        """The classes, and of each split the number of images and a hash of them and the labels."""
        splits = {name: getattr(self, name) for name in SPLITS}
        return {"classes": [*self.classes]} | {
            name: f"{len(split)} {self.unit}, {hash_all(split.images, split.labels)}"
            for name, split in splits.items()
        }

    def make_zero_batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Make images (count, C, H, W), float32, and labels (count,), int64, of zeros."""
        return torch.zeros(count, *self.shape), torch.zeros(count, dtype=torch.int64)

    def find_problems(self, *, augment: bool) -> list[str]:
        """Check that images are large enough to be augmented. One sentence per problem."""
        if not augment:
            return []
        pad, (_, height, width) = self.augment.pad, self.shape
        problems = find_cutout_problems(self.augment, height, width)
        if self.augment.reflect and pad >= min(height, width):
            problems.append(
                f"The images are {height}x{width}, but reflection by {pad} pixels needs more than"
                " that on each side: pad by fewer pixels, pad with zeros, or do not crop."
            )
        return problems

    def make_reader(
        self, split: str, *, augment: bool, seed: int, device: torch.device
    ) -> "ImageReader":
        """Make the reader of the split of this name."""
        return ImageReader(
            getattr(self, split),
            self.augment if augment else Augment(),
            self.normalization,
            seed=seed,
            device=device,
        )


class ImageReader:
    """Makes batches of images, augmented and normalised on the device.

    The split is moved to the device once if it is not too large (`MAX_HELD_BYTES`).

    Args:
        split: the samples.
        augment: the augmentation.
        normalization: mean and standard deviation per channel.
        seed: seed of the augmentation.
        device: the device of the batches.
    """

    def __init__(
        self,
        split: Split,
        augment: Augment,
        normalization: Normalization,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        moved = device.type != "cpu" and split.images.nbytes <= MAX_HELD_BYTES
        self.split = split.to(device) if moved else split
        self.held_bytes = self.split.images.nbytes + self.split.labels.nbytes if moved else 0
        self.augment = augment
        self.seed = seed
        self.device = device
        self._mean, self._std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in normalization
        )

    def read_epoch(self, number: int, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a batch for each tensor of sample indices (N,).

        Yields:
            Normalized images (N, C, H, W), float32, and labels (N,), int64.
        """
        # Draws of the whole epoch, by sample index: they do not depend on the order or batch size.
        count = len(self.split)
        draws = torch.rand(count, 3, generator=make_generator("augment", self.seed, number))
        centres = torch.rand(count, 2, generator=make_generator("cutout", self.seed, number))
        for indices in batches:
            held_indices = indices.to(self.split.images.device)
            images = self.split.images[held_indices].to(self.device)
            if self.augment.pad or self.augment.flip:
                images = crop_and_flip(images, self.augment, draws[indices])
            inputs = (to_float(images) - self._mean) / self._std
            if self.augment.cutout:
                inputs = cut_out(inputs, self.augment.cutout, centres[indices])
            yield inputs, self.split.labels[held_indices].to(self.device)


def to_float(images: Tensor) -> Tensor:
    """Convert images to float32. uint8 is scaled to 0..1, floating values stay as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def build_images(
    name: str,
    train: Split,
    test: Split,
    classes: tuple[str, ...],
    *,
    augment: Augment,
    normalization: Normalization | None = None,
    limit: int | None = None,
    validation: float = 0.1,
) -> Images:
    """Build a data set: hold out the validation split, apply the limit, and measure the pixels.

    Args:
        name: the name in reports.
        train: all training images, validation included.
        test: the test images.
        classes: one name per class.
        augment: the augmentation of training images.
        normalization: published mean and standard deviation. None measures the training split.
        limit: keep at most this many training images. Validation and test stay whole.
        validation: fraction of the training images of each class to hold out.

    Example:
        >>> split = Split(images, labels)
        >>> data = build_images("mine", split, test, ("a", "b"), augment=Augment())
    """
    kept, held_out = hold_out(train.labels, validation)
    training = train.select(kept)
    if limit is not None:
        training = training.take(limit)
    mean, std = normalization or measure_normalization(training.images)
    return Images(name, training, train.select(held_out), test, classes, augment, mean, std)


def hold_out(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Split indices into kept and held-out ones, with the same share of each class.

    The result is a function of the labels and the share alone. Unless the share is zero, every
    class with two samples or more has at least one held-out and one kept sample.

    Args:
        labels: (N,), int64.
        share: fraction of each class to hold out, 0 <= share < 1.

    Returns:
        Kept indices (M,) and held-out indices (N - M,), both ascending.

    Raises:
        BadInput: the share lies outside [0, 1).

    Example:
        >>> kept, held_out = hold_out(torch.arange(1000) % 10, 0.1)
        >>> len(kept), len(held_out)
        (900, 100)
    """
    if not 0 <= share < 1:
        raise BadInput(f"validation={share}, but 0 <= share < 1 is needed: try 0.1.")
    held = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(HOLD_OUT_SEED)
    for members in _iterate_classes(labels):
        count = min(max(1, round(share * len(members))), len(members) - 1) if share > 0 else 0
        # A prefix of one permutation: a larger share holds out the same samples and more.
        permutation = torch.randperm(len(members), generator=generator)
        held[members[permutation[:count]]] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def select_per_class(labels: Tensor, limit: int) -> Tensor:
    """Select `limit` samples with equal shares of the classes. Returns ascending indices (M,).

    The selection takes the first sample of each class, then the second of each, and so on until
    there are enough.

    Example:
        >>> select_per_class(torch.tensor([0, 0, 0, 1, 0, 1]), 4).tolist()
        [0, 1, 3, 5]
    """
    position_in_class = torch.empty_like(labels)
    for members in _iterate_classes(labels):
        position_in_class[members] = torch.arange(len(members))
    return position_in_class.argsort(stable=True)[:limit].sort().values


def _iterate_classes(labels: Tensor) -> Iterator[Tensor]:
    """Yield the indices of the samples of each class, in the order of the classes."""
    for label in sorted(set(labels.tolist())):
        yield torch.nonzero(labels == label).flatten()


def measure_normalization(images: Tensor) -> Normalization:
    """Measure mean and standard deviation per channel of images (N, C, H, W).

    A constant channel has standard deviation 1.

    Example:
        >>> measure_normalization(torch.ones(2, 1, 4, 4))
        Normalization(mean=(1.0,), std=(1.0,))
    """
    chans = images.shape[1]
    total, squares = torch.zeros(2, chans, dtype=torch.float64)
    # In chunks: the whole set as float64 would take eight times the memory of uint8.
    for start in range(0, len(images), 1024):
        values = to_float(images[start : start + 1024]).double()
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = images.numel() // chans
    mean = (total / count).tolist()
    std = []
    for channel_mean, square_sum in zip(mean, squares.tolist(), strict=True):
        variance = square_sum / count - channel_mean * channel_mean
        # The difference has no correct digits if the variance is tiny compared with the squared
        # mean. Such a channel counts as constant.
        varies = variance > 1e-12 * channel_mean * channel_mean
        std.append(math.sqrt(variance) if varies else 1.0)
    return Normalization(tuple(mean), tuple(std))
