"""Text as bytes, cut into windows: what a language model is trained on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from localprop.data.dataset import generator_of
from localprop.errors import BadInput, check

VOCABULARY = 256  # a token is a byte


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of neighbouring tokens that do not overlap.

    Args:
        tokens: (L,), uint8.
        context: T, the tokens of a window; a target more is read at its end.
        shifted: the windows begin at an offset of 0..T-1, drawn anew for each epoch; else at 0.

    Example:
        >>> len(Windows(torch.zeros(101, dtype=torch.uint8), context=10))
        10
    """

    tokens: Tensor
    context: int
    shifted: bool = False

    def __len__(self) -> int:
        spare = self.context if self.shifted else 1
        return max(0, (len(self.tokens) - spare) // self.context)


@dataclass(frozen=True, eq=False)
class Text:
    """A text of bytes, split by position into training, validation and test windows.

    Args:
        name: for reports.
        train: of the first 80%; shifted anew in each epoch.
        validation: of the next 10%.
        test: of the last 10%.

    Example:
        >>> load("text", context=64).shape
        (64,)
    """

    name: str
    train: Windows
    validation: Windows
    test: Windows

    unit = "windows"
    num_classes = VOCABULARY
    moments = None

    @property
    def shape(self) -> tuple[int]:
        """(T,) of one window."""
        return (self.train.context,)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets (count, T), int64: zeros."""
        zeros = torch.zeros(count, *self.shape, dtype=torch.int64)
        return zeros, zeros.clone()

    def problems(self, *, augment: bool) -> list[str]:
        """Nothing hinders it."""
        return []

    def reader(self, split: str, *, augment: bool, seed: int, device: torch.device) -> "WindowReader":
        """What makes batches of the split of this name; there is no augmentation but the offset of training windows."""
        return WindowReader(getattr(self, split), seed=seed, device=device)


class WindowReader:
    """Batches of windows, on the device, to which all tokens are moved once.

    Args:
        windows: the split.
        seed: of the offset.
        device: where batches are made.
    """

    def __init__(self, windows: Windows, *, seed: int, device: torch.device) -> None:
        self.windows = windows
        self.seed = seed
        self.tokens = windows.tokens.to(device)
        self.held_bytes = self.tokens.nbytes if device.type != "cpu" else 0

    def epoch(self, number: int, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens (N, T), int64, and the token after each of them, for each tensor of windows' indices (N,)."""
        context = self.windows.context
        offset = self._offset(number)
        steps = torch.arange(context + 1, device=self.tokens.device)
        for indices in batches:
            starts = (indices * context + offset).to(self.tokens.device)
            tokens = self.tokens[starts[:, None] + steps].long()
            yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _offset(self, number: int) -> int:
        if not self.windows.shifted:
            return 0
        return int(torch.randint(self.windows.context, (), generator=generator_of("offset", self.seed, number)))


def load_text(name_or_path: str | Path, *, context: int = 128, limit: int | None = None) -> Text:
    """Read a text: Python's own, or a file of any encoding.

    "text" is the reference that `help()` prints, `pydoc_data.topics`, its topics in the order of their names: some hundred
    thousand bytes of English that every CPython brings along, so that no download is needed. Their number depends on the
    version of Python, so figures of different versions are not comparable.

    Args:
        name_or_path: "text", or a path that ends in .txt.
        context: the bytes of a window.
        limit: keep that many training windows at most, the first ones; validation and test stay whole.

    Raises:
        BadInput: no such file, or one that is too short for a window in each split.

    Example:
        >>> load_text("text", context=64, limit=10).train.tokens.shape
        torch.Size([704])
    """
    content = _pythons() if str(name_or_path) == "text" else _read(Path(name_or_path))
    count = len(content)
    tokens = torch.frombuffer(bytearray(content), dtype=torch.uint8) if count else torch.zeros(0, dtype=torch.uint8)
    train, validation, test = tokens.tensor_split((count * 8 // 10, count * 9 // 10))
    if limit is not None:
        train = train[: (limit + 1) * context]  # the last window's room to shift
    splits = {
        "train": Windows(train, context, shifted=True),
        "validation": Windows(validation, context),
        "test": Windows(test, context),
    }
    short = [split for split, windows in splits.items() if not len(windows)]
    check(
        [
            f"{name_or_path} has {count} bytes, too few for a window of {context} in {', '.join(short)}: lower context, or take "
            "a longer text."
        ]
        if short
        else []
    )
    return Text(Path(name_or_path).stem, **splits)


def _pythons() -> bytes:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): check the path.") from error
