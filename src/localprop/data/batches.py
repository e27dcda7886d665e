"""Batches on the device: order, augmentation and normalisation as functions of (seed, epoch, index)."""

from collections.abc import Iterator
from hashlib import blake2b

import torch
from torch import Tensor

from localprop.data.arrays import Augment, Dataset, Split, as_float
from localprop.errors import check


class Batches:
    """The batches of one split, epoch after epoch.

    The order of the samples and the augmentation of each are functions of the seed, the epoch and the
    sample's index, so that a run resumes anywhere and every rank of a pipeline sees the same batches; torch's
    global generator is neither read nor changed.

    Args:
        dataset: where the images come from.
        split: "train", "validation" or "test".
        batch_size: samples per batch; the last batch may have fewer.
        shuffle: draw a new order in each epoch.
        augment: augment as the data set says.
        seed: of order and augmentation.
        device: where batches are made.
        drop_last: leave out a last batch of fewer samples.

    Raises:
        BadInput: for an unknown split, one without a single batch, or a reflection wider than the images.

    Example:
        >>> batches = Batches(load("digits"), "train", 256, shuffle=True, augment=True, seed=0, device="cpu")
        >>> next(batches.epoch(0))[0].shape
        torch.Size([256, 1, 8, 8])
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
    ) -> None:
        check(_problems(dataset, split, batch_size, augment, drop_last))
        self.split: Split = getattr(dataset, split)
        self.batch_size = batch_size
        self.augment = dataset.augment if augment else Augment()
        self.shuffle = shuffle
        self.seed = seed
        self.device = torch.device(device)
        self.drop_last = drop_last
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(-1, 1, 1) for values in (dataset.mean, dataset.std)
        )

    def __len__(self) -> int:
        """Batches per epoch."""
        return _count(len(self.split), self.batch_size, self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch 0, for splits that are neither shuffled nor augmented; see `epoch`."""
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, the same whenever it is asked for.

        Yields:
            Normalised images (N, C, H, W), float32, and labels (N,), int64, both on the device.
        """
        order = self._order(number)
        draws = torch.rand(len(self.split), 3, generator=_generator("augment", self.seed, number))
        for batch in range(len(self)):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            images = self.split.images[indices].to(self.device)
            if self.augment != Augment():
                images = augmented(images, self.augment, draws[indices])
            yield (as_float(images) - self._mean) / self._std, self.split.labels[indices].to(self.device)

    def _order(self, number: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.split))
        return torch.randperm(len(self.split), generator=_generator("order", self.seed, number))


def _count(samples: int, batch_size: int, drop_last: bool) -> int:
    return samples // batch_size if drop_last else -(-samples // batch_size)


def _problems(dataset: Dataset, split: str, batch_size: int, augment: bool, drop_last: bool) -> list[str]:
    problems = []
    if split not in ("train", "validation", "test"):
        problems.append(f"The split is {split!r}, but there are train, validation and test: choose one.")
    if batch_size < 1:
        problems.append(f"The batch size is {batch_size}, but at least 1 is needed: raise it.")
    if not problems and not _count(len(getattr(dataset, split)), batch_size, drop_last):
        problems.append(
            f"The {split} split has {len(getattr(dataset, split))} images, which make no batch of"
            f" {batch_size}: lower the batch size, keep the last batch, or hold out more."
        )
    pad, (_, height, width) = dataset.augment.pad, dataset.shape
    if augment and dataset.augment.reflect and pad >= min(height, width):
        problems.append(
            f"The images are {height}x{width}, but reflection by {pad} pixels needs more than that on each"
            " side: crop less, or not at all."
        )
    return problems


def _generator(purpose: str, seed: int, epoch: int) -> torch.Generator:
    digest = blake2b(f"{purpose} {seed} {epoch}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def augmented(images: Tensor, augment: Augment, draws: Tensor) -> Tensor:
    """Crop and flip each image by its own draws.

    Row i of the result takes its pixels from row `rows[i]` of the image, and columns likewise, so that
    padding, crop and flip are a single gather; the padded images are never made.

    Args:
        images: (N, C, H, W), of any type and device.
        augment: what to do.
        draws: (N, 3), uniform in [0, 1): for the vertical and horizontal offset and the flip.

    Returns:
        Images of the same shape, type and device.

    Example:
        >>> augmented(images, Augment(flip=True), torch.zeros(len(images), 3)).equal(images.flip(-1))
        True
    """
    height, width = images.shape[-2:]
    # float32 draws just below 1 would round up to the offset 2 * pad + 1
    offsets = (draws[:, :2].double() * (2 * augment.pad + 1)).long() - augment.pad
    rows = torch.arange(height) + offsets[:, :1]
    cols = torch.arange(width) + offsets[:, 1:]
    if augment.flip:
        cols = torch.where(draws[:, 2:] < 0.5, cols.flip(1), cols)
    return _gathered(images, rows.to(images.device), cols.to(images.device), augment.reflect)


def _gathered(images: Tensor, rows: Tensor, cols: Tensor, reflect: bool) -> Tensor:
    """Pixels of images (N, C, H, W) at rows (N, H) and columns (N, W), which may lie outside."""
    count, chans, height, width = images.shape
    sample = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(chans, device=images.device).view(1, -1, 1, 1)
    row, row_inside = _inside(rows, height, reflect)
    col, col_inside = _inside(cols, width, reflect)
    pixels = images[sample, channel, row.view(count, 1, height, 1), col.view(count, 1, 1, width)]
    if reflect:
        return pixels
    return pixels * (row_inside.view(count, 1, height, 1) & col_inside.view(count, 1, 1, width))


def _inside(positions: Tensor, size: int, reflect: bool) -> tuple[Tensor, Tensor]:
    """Positions brought into 0..size-1, and which of them were there before."""
    inside = (positions >= 0) & (positions < size)
    if reflect:
        return (size - 1) - ((size - 1) - positions.abs()).abs(), inside
    return positions.clamp(0, size - 1), inside
