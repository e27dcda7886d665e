"""What training and evaluation need of a data set: images in memory, images in files, or text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Normalization"]

SPLITS = ("train", "validation", "test")


class Normalization(NamedTuple):
    """How inputs are computed from pixels in 0..1: (pixel - mean) / std, per channel.

    The default leaves pixels unchanged.

    Attributes:
        mean: one number per channel, or one for all channels.
        std: standard deviation, likewise.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class Reader(Protocol):
    """Makes the batches of one split on one device."""

    @property
    def held_bytes(self) -> int:
        """Bytes that the reader holds on an accelerator between batches."""
        ...

    def read_epoch(self, number: int, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets for each tensor of sample indices.

        Randomness in the samples is a function of the seed and the epoch.
        """
        ...


@runtime_checkable
class Dataset(Protocol):
    """A training, a validation and a test split, and the readers that make their batches.

    The validation split is for model selection and early stopping. The test split is for the
    reported figure.
    """

    @property
    def name(self) -> str:
        """The name in reports."""
        ...

    @property
    def unit(self) -> str:
        """The noun for samples, in the plural: "images" or "windows"."""
        ...

    @property
    def train(self) -> Sized:
        """The training split."""
        ...

    @property
    def validation(self) -> Sized:
        """Held out of the training data. It may be empty."""
        ...

    @property
    def test(self) -> Sized:
        """The test split."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch."""
        ...

    @property
    def num_classes(self) -> int:
        """The number of classes, or of tokens."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how it was read, one sentence each."""
        ...

    @property
    def normalization(self) -> Normalization | None:
        """How inputs are computed from pixels. None if they are no images."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must find again, as plain values: classes, sizes and hashes."""
        ...

    def make_zero_batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Make inputs and targets of zeros, with the shapes and types of the data set's batches."""
        ...

    def find_problems(self, *, augment: bool) -> list[str]:
        """List why no batches can be made of it, one sentence per problem."""
        ...

    def make_reader(self, split: str, *, augment: bool, seed: int, device: torch.device) -> Reader:
        """Make the reader of the split of this name."""
        ...


def hash_all(*parts: str | Tensor) -> str:
    """A hash of texts and of the values of tensors, 16 hexadecimal digits.

    Example:
        >>> hash_all("a", torch.zeros(2)) == hash_all("a", torch.zeros(2))
        True
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.contiguous().numpy().data)
        else:
            digest.update(part.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def make_generator(purpose: str, *numbers: int) -> torch.Generator:
    """Make a CPU generator. Its draws are a function of a purpose and numbers like (seed, epoch).

    Example:
        >>> first, second = (make_generator("order", 0, 1) for _ in range(2))
        >>> torch.rand(1, generator=first) == torch.rand(1, generator=second)
        tensor([True])
    """
    text = " ".join(map(str, (purpose, *numbers)))
    # Not Python's hash(), which differs from process to process.
    digest = blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
