"""What ranks tell each other: the layout of a tensor, and greetings that compare their batches."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from localprop.errors import BadInput
from localprop.rule.losses import Batch

_DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
_FORMATS = {0: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}  # by number of dimensions
HEADER = 12  # numbers of a header: dtype, whether channels last, number of sizes, sizes
_SAMPLED = 4096  # values of a batch on an accelerator that its checksum looks at


class Layout(NamedTuple):
    """What a tensor looks like but for the number of samples.

    Attributes:
        dtype: its type.
        channels_last: whether it is stored so; else it is contiguous.
        sizes: its shape; the first size is -1 where it is the number of samples.
    """

    dtype: torch.dtype
    channels_last: bool
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, samples: int) -> Layout:
        """The layout of a tensor that so many samples have made.

        Example:
            >>> import torch
            >>> Layout.of(torch.zeros(8, 3), samples=8)
            Layout(dtype=torch.float32, channels_last=False, sizes=(-1, 3))
        """
        last = not tensor.is_contiguous()
        first, *others = tensor.shape
        return cls(tensor.dtype, last, (-1 if first == samples else first, *others))

    def encoded(self) -> Tensor:
        """As whole numbers."""
        numbers = [_DTYPES.index(self.dtype), int(self.channels_last), len(self.sizes), *self.sizes]
        return torch.tensor(numbers + [0] * (HEADER - len(numbers)))

    @classmethod
    def decoded(cls, header: Tensor) -> Layout:
        """What :meth:`encoded` was made from."""
        dtype, last, count, *sizes = header.tolist()
        return cls(_DTYPES[dtype], bool(last), tuple(sizes[:count]))

    def empty(self, samples: int, device: torch.device) -> Tensor:
        """A tensor to receive into."""
        sizes = [samples if size == -1 else size for size in self.sizes]
        layout = _FORMATS[len(sizes) if self.channels_last else 0]
        return torch.empty(sizes, dtype=self.dtype, device=device, memory_format=layout)


def flat(tensor: Tensor) -> Tensor:
    """The values of a dense tensor in the order of memory, as a view."""
    return tensor.as_strided((tensor.numel(),), (1,))


def greeting_of(number: int, batch: Batch, *, training: bool) -> Tensor:
    """The number of a step, the size of its batch, and a checksum of inputs and targets."""
    checksum = 0
    for tensor in batch:
        checksum = zlib.crc32(bytes_of(_sampled(tensor)), checksum)
    return torch.tensor([number, int(training), len(batch.inputs), checksum])


def _sampled(tensor: Tensor) -> Tensor:
    """All values of a tensor on the CPU; of one on an accelerator some, since they have to be copied."""
    if tensor.device.type == "cpu":
        return tensor
    values = tensor.reshape(-1)
    return values[:: max(1, len(values) // _SAMPLED)].cpu()


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU."""
    array: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def check_greeting(there: int, theirs: list[int], here: int, own: list[int]) -> None:
    """Refuse a batch that differs from the one of the rank before.

    Raises:
        BadInput: another step, another size, or other values.

    Example:
        >>> check_greeting(0, [7, 1, 64, 123], 1, [7, 1, 64, 123])
    """
    if theirs[:2] != own[:2]:
        words = [
            f"step {number} of {'training' if training else 'prediction'}" for number, training, *_ in (theirs, own)
        ]
        raise BadInput(
            f"Rank {there} is at {words[0]}, but rank {here} at {words[1]}: all ranks must make the same calls of "
            "step, flush, predict and gather."
        )
    if theirs != own:
        raise BadInput(
            f"In step {own[0]} rank {there} has a batch of {theirs[2]} (checksum {theirs[3]:08x}), but rank {here} one of "
            f"{own[2]} (checksum {own[3]:08x}): their loaders must give the same batches. Seed the shuffling alike on all "
            "ranks (a generator of its own), and make augmentation a function of seed, epoch and index."
        )
