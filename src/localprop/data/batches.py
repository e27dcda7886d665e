"""Batches on the device: order, augmentation and normalisation as functions of (seed, epoch, index)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from localprop.data.dataset import SPLITS, Dataset, generator_of
from localprop.errors import check


class Batches:
    """The batches of one split, epoch after epoch.

    The order of the samples and the augmentation of each are functions of the seed, the epoch and the
    sample's index, so that a run resumes anywhere and every rank of a pipeline sees the same batches; torch's
    global generator is neither read nor changed. Draws are made on the CPU, so that they are the same on every device.

    Args:
        dataset: where the samples come from.
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
        self.samples = len(getattr(dataset, split))
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self._reader = dataset.reader(split, augment=augment, seed=seed, device=torch.device(device))

    def __len__(self) -> int:
        """Batches per epoch."""
        return _count(self.samples, self.batch_size, self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch 0, for splits that are neither shuffled nor augmented; see `epoch`."""
        return self.epoch(0)

    @property
    def held_bytes(self) -> int:
        """What the split takes on an accelerator, in bytes; 0 where batches are brought there one by one."""
        return self._reader.held_bytes

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, the same whenever it is asked for.

        Yields:
            Inputs and targets, both on the device: normalised images (N, C, H, W), float32, and labels (N,), int64; or
            tokens (N, T), int64, and the tokens that follow them.
        """
        order = self._order(number)
        places = range(0, len(self) * self.batch_size, self.batch_size)
        return self._reader.epoch(number, [order[start : start + self.batch_size] for start in places])

    def _order(self, number: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.samples)
        return torch.randperm(self.samples, generator=generator_of("order", self.seed, number))


def _count(samples: int, batch_size: int, drop_last: bool) -> int:
    return samples // batch_size if drop_last else -(-samples // batch_size)


def _problems(dataset: Dataset, split: str, batch_size: int, augment: bool, drop_last: bool) -> list[str]:
    problems = []
    if split not in SPLITS:
        problems.append(f"The split is {split!r}, but there are train, validation and test: choose one.")
    if batch_size < 1:
        problems.append(f"The batch size is {batch_size}, but at least 1 is needed: raise it.")
    if not problems and not _count(len(getattr(dataset, split)), batch_size, drop_last):
        problems.append(
            f"The {split} split has {len(getattr(dataset, split))} {dataset.unit}, which make no batch of"
            f" {batch_size}: lower the batch size, keep the last batch, or hold out more."
        )
    return problems + dataset.problems(augment=augment)
