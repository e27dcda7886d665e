"""What training and evaluation need of a data set, be it images in memory, files in a folder, or text."""

from collections.abc import Iterable, Iterator, Sized
from hashlib import blake2b
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")


class Moments(NamedTuple):
    """Mean and standard deviation per channel, of values in 0..1 where the images are uint8."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Reader(Protocol):
    """Makes batches of one split on one device."""

    @property
    def held_bytes(self) -> int:
        """What it keeps on an accelerator between batches."""
        ...

    def epoch(self, number: int, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets for each tensor of samples' indices; what is random in them is a function of seed and epoch."""
        ...


class Dataset(Protocol):
    """A data set: a training, a validation and a test split, and how batches are made of them.

    The validation split is for choosing and stopping, the test split for the figure that is reported.
    """

    @property
    def name(self) -> str:
        """For reports."""
        ...

    @property
    def unit(self) -> str:
        """What a sample is, in the plural: "images" or "windows"."""
        ...

    @property
    def train(self) -> Sized:
        """The training split."""
        ...

    @property
    def validation(self) -> Sized:
        """Held out of the training data; may be empty."""
        ...

    @property
    def test(self) -> Sized:
        """The test split."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        ...

    @property
    def num_classes(self) -> int:
        """The number of classes, or of tokens."""
        ...

    @property
    def moments(self) -> Moments | None:
        """How inputs were made from pixels; None if they are no images."""
        ...

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """A batch of zeros in the shape and type of this data set's batches."""
        ...

    def problems(self, *, augment: bool) -> list[str]:
        """Why no batches can be made of it, one sentence each."""
        ...

    def reader(self, split: str, *, augment: bool, seed: int, device: torch.device) -> Reader:
        """What makes batches of the split of this name."""
        ...


def generator_of(purpose: str, *place: int) -> torch.Generator:
    """A generator on the CPU whose draws are a function of a purpose and a place, such as (seed, epoch).

    Example:
        >>> torch.rand(1, generator=generator_of("order", 0, 1)) == torch.rand(1, generator=generator_of("order", 0, 1))
        tensor([True])
    """
    text = " ".join(map(str, (purpose, *place)))
    digest = blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
