"""Batches on the device. Order and augmentation are functions of (seed, epoch, index)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from localprop.arguments import check_arguments
from localprop.data.dataset import SPLITS, Dataset, make_generator
from localprop.errors import BadInput, check, show


@check_arguments
class Batches:
    """The batches of one split, epoch after epoch.

    The order of the samples and the augmentation of each sample are functions of the seed, the
    epoch and the sample's index. A run can thus resume anywhere, and every rank of a pipeline makes
    the same batches. torch's global generator is neither read nor changed. Draws are made on the
    CPU, so that they are the same on every device.

    Args:
        dataset: the data set.
        split: "train", "validation" or "test".
        batch_size: samples per batch. The last batch may have fewer.
        shuffle: draw a new order in each epoch.
        augment: augment as the data set says.
        seed: seed of order and augmentation.
        device: the device of the batches.
        drop_last: leave out the last batch if it has fewer samples.

    Raises:
        BadInput: if the split is unknown or makes no batch, or if the images are too small for
            their augmentation.

    Example:
        >>> batches = Batches(load("digits"), "train", 256, shuffle=True, augment=True)
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
        check(_find_problems(dataset, split, batch_size, augment, drop_last))
        try:
            place = torch.device(device)
        except RuntimeError as error:
            raise BadInput(f"device={show(device)} is unknown to torch: try 'cpu'.") from error
        self.samples = len(getattr(dataset, split))
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self._reader = dataset.make_reader(split, augment=augment, seed=seed, device=place)

    def __len__(self) -> int:
        """Batches per epoch."""
        return _count_batches(self.samples, self.batch_size, self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch 0. Meant for splits that are neither shuffled nor augmented."""
        return self.epoch(0)

    @property
    def held_bytes(self) -> int:
        """Bytes of the split on an accelerator. 0 if batches are moved there one by one."""
        return self._reader.held_bytes

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch. Two calls with the same number yield the same batches.

        Args:
            number: the epoch, from 0.
            skip: leave out as many batches at the beginning. The others are the same.

        Yields:
            Inputs and targets, both on the device: normalised images (N, C, H, W), float32, and
            labels (N,), int64; or tokens (N, T), int64, and the tokens that follow them.
        """
        order = self._draw_order(number)
        starts = range(skip * self.batch_size, len(self) * self.batch_size, self.batch_size)
        batches = [order[start : start + self.batch_size] for start in starts]
        return self._reader.read_epoch(number, batches)

    def _draw_order(self, number: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.samples)
        return torch.randperm(self.samples, generator=make_generator("order", self.seed, number))


def _count_batches(samples: int, batch_size: int, drop_last: bool) -> int:
    return samples // batch_size if drop_last else -(-samples // batch_size)


def _find_problems(
    dataset: Dataset, split: str, batch_size: int, augment: bool, drop_last: bool
) -> list[str]:
    problems = []
    if split not in SPLITS:
        problems.append(
            f"The split is {split!r}, but there are train, validation and test: choose one."
        )
    if batch_size < 1:
        problems.append(f"The batch size is {batch_size}, but at least 1 is needed: raise it.")
    if not problems:
        samples = len(getattr(dataset, split))
        if _count_batches(samples, batch_size, drop_last) == 0:
            problems.append(
                f"The {split} split has {samples} {dataset.unit}, which make no batch of"
                f" {batch_size}: lower the batch size, keep the last batch, or hold out more."
            )
    return problems + dataset.find_problems(augment=augment)
