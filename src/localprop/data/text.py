"""Text as bytes, cut into windows, for training language models."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from localprop.arguments import check_arguments
from localprop.data.dataset import SPLITS, hash_all, make_generator
from localprop.errors import BadInput

VOCABULARY = 256  # A token is a byte.


@dataclass(frozen=True, eq=False)
class TokenWindows:
    """Windows of neighbouring tokens that do not overlap.

    Args:
        tokens: (L,), uint8.
        context: T, the tokens of a window. One more token after it is the last target.
        shifted: begin the windows at an offset of 0..T-1, drawn anew for each epoch, instead of 0.

    Example:
        >>> len(TokenWindows(torch.zeros(101, dtype=torch.uint8), context=10))
        10
    """

    tokens: Tensor
    context: int
    shifted: bool = False

    def __len__(self) -> int:
        # Shifted windows leave room for the largest offset (T - 1) and the last target.
        spare = self.context if self.shifted else 1
        return max(0, (len(self.tokens) - spare) // self.context)

    def take(self, count: int) -> "TokenWindows":
        """Keep at most so many windows, the first ones."""
        spare = self.context if self.shifted else 1
        return replace(self, tokens=self.tokens[: count * self.context + spare])


@dataclass(frozen=True, eq=False)
class Text:
    """A text of bytes, split by position into training, validation and test windows.

    Args:
        name: the name in reports.
        train: windows of the first 80%, shifted anew in each epoch.
        validation: windows of the next 10%.
        test: windows of the last 10%.

    Example:
        >>> load("text", context=64).shape
        (64,)
    """

    name: str
    train: TokenWindows
    validation: TokenWindows
    test: TokenWindows

    unit = "windows"
    num_classes = VOCABULARY
    normalization = None
    notes: ClassVar[tuple[str, ...]] = ()

    @property
    def shape(self) -> tuple[int]:
        """(T,) of one window."""
        return (self.train.context,)

    def fingerprint(self) -> dict[str, Any]:
        """Of each split the number of windows and a hash of the bytes."""
        splits = {name: getattr(self, name) for name in SPLITS}
        return {
            name: f"{len(windows)} {self.unit}, {hash_all(windows.tokens)}"
            for name, windows in splits.items()
        }

    def make_zero_batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Make tokens and targets (count, T), int64, of zeros."""
        zeros = torch.zeros(count, *self.shape, dtype=torch.int64)
        return zeros, zeros.clone()

    def find_problems(self, *, augment: bool) -> list[str]:
        """Always empty: windows of text can be read with and without augmentation."""
        return []

    def make_reader(
        self, split: str, *, augment: bool, seed: int, device: torch.device
    ) -> "WindowReader":
        """Make the reader of the split of this name.

        `augment` has no effect. The offset of training windows is their only augmentation.
        """
        return WindowReader(getattr(self, split), seed=seed, device=device)


class WindowReader:
    """Makes batches of windows on the device. All tokens are moved there once.

    Args:
        windows: the split.
        seed: seed of the offset.
        device: the device of the batches.
    """

    def __init__(self, windows: TokenWindows, *, seed: int, device: torch.device) -> None:
        self.windows = windows
        self.seed = seed
        self.tokens = windows.tokens.to(device)
        self.held_bytes = self.tokens.nbytes if device.type != "cpu" else 0

    def read_epoch(self, number: int, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a batch for each tensor of window indices (N,).

        Yields:
            Tokens (N, T), int64, and the token after each of them, (N, T).
        """
        context = self.windows.context
        offset = self._draw_offset(number)
        steps = torch.arange(context + 1, device=self.tokens.device)
        for indices in batches:
            starts = (indices * context + offset).to(self.tokens.device)
            tokens = self.tokens[starts[:, None] + steps].long()
            yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _draw_offset(self, epoch: int) -> int:
        if not self.windows.shifted:
            return 0
        generator = make_generator("offset", self.seed, epoch)
        return int(torch.randint(self.windows.context, (), generator=generator))


@check_arguments
def load_text(name_or_path: str | Path, *, context: int = 128, limit: int | None = None) -> Text:
    """Read a text: a reference that ships with Python, or a file of any encoding.

    "text" is `pydoc_data.topics`, the reference that `help()` prints, with its topics sorted by
    name. Every CPython ships these few hundred thousand bytes of English, so no download is needed.
    Their number depends on the version of Python, so figures of different versions are not
    comparable.

    Args:
        name_or_path: "text", or a path that ends in .txt.
        context: the bytes of a window.
        limit: keep at most this many training windows, the first ones. Validation and test stay
            whole.

    Raises:
        BadInput: if the file cannot be read, or is too short for a window in each split.

    Example:
        >>> load_text("text", context=64, limit=10).train.tokens.shape
        torch.Size([704])
    """
    is_topics = str(name_or_path) == "text"
    content = _read_python_topics() if is_topics else _read_file(Path(name_or_path))
    splits = _split_windows(content, context, limit)
    short = [split for split, windows in splits.items() if not len(windows)]
    if short:
        raise BadInput(
            f"{name_or_path} has {len(content)} bytes, too few for a window of {context} in"
            f" {', '.join(short)}: lower context, or use a longer text."
        )
    return Text(Path(name_or_path).stem, **splits)


def _split_windows(content: bytes, context: int, limit: int | None) -> dict[str, TokenWindows]:
    """Split bytes at 80% and 90% into training, validation and test windows."""
    count = len(content)
    # `frombuffer` refuses an empty buffer. A bytearray, because tensors of `bytes` are read-only.
    tokens = torch.zeros(0, dtype=torch.uint8)
    if count:
        tokens = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    train, validation, test = tokens.tensor_split((count * 8 // 10, count * 9 // 10))
    training = TokenWindows(train, context, shifted=True)
    return {
        "train": training if limit is None else training.take(limit),
        "validation": TokenWindows(validation, context),
        "test": TokenWindows(test, context),
    }


def _read_python_topics() -> bytes:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode()


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): check the path.") from error
