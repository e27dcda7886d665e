"""Headers of messages: the layout of a tensor, and the handshake that compares batches."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from localprop.errors import BadInput
from localprop.tasks.batch import Batch

# A header names a dtype by its index in this tuple.
_DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.int8,
    torch.int16,
    torch.complex64,
    torch.complex128,
)
_MEMORY_FORMATS = {
    0: torch.contiguous_format,
    4: torch.channels_last,
    5: torch.channels_last_3d,
}  # by number of dimensions
HEADER_SIZE = 12  # numbers of a header: dtype, whether channels last, number of sizes, sizes
_CHECKSUM_VALUES = 4096  # values of a batch on an accelerator that its checksum covers


class Layout(NamedTuple):
    """How a tensor looks, apart from the number of samples.

    Attributes:
        dtype: the dtype.
        channels_last: whether its memory is channels last; otherwise it is contiguous.
        sizes: the shape; the first size is -1 where it is the number of samples.
    """

    dtype: torch.dtype
    channels_last: bool
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, samples: int) -> Layout:
        """Return the layout of a tensor that was computed from a number of samples.

        Example:
            >>> import torch
            >>> Layout.of(torch.zeros(8, 3), samples=8)
            Layout(dtype=torch.float32, channels_last=False, sizes=(-1, 3))
        """
        # A tensor of one channel or one pixel is both; the order of its memory is the same, and it
        # counts as contiguous.
        channels_last = not tensor.is_contiguous()
        sizes = [*tensor.shape]
        if sizes[:1] == [samples]:
            sizes[0] = -1
        return cls(tensor.dtype, channels_last, tuple(sizes))

    def encode(self) -> Tensor:
        """Encode the layout as `HEADER_SIZE` integers."""
        numbers = [_DTYPES.index(self.dtype), int(self.channels_last), len(self.sizes), *self.sizes]
        return torch.tensor(numbers + [0] * (HEADER_SIZE - len(numbers)))

    @classmethod
    def decode(cls, header: Tensor) -> Layout:
        """Decode the integers that `encode` returned."""
        dtype, channels_last, count, *sizes = header.tolist()
        return cls(_DTYPES[dtype], bool(channels_last), tuple(sizes[:count]))

    def allocate(self, samples: int, device: torch.device) -> Tensor:
        """Allocate an uninitialised tensor of this layout to receive into."""
        sizes = [samples if size == -1 else size for size in self.sizes]
        memory_format = _MEMORY_FORMATS[len(sizes) if self.channels_last else 0]
        return torch.empty(sizes, dtype=self.dtype, device=device, memory_format=memory_format)


def encode_header(layout: Layout | None) -> Tensor:
    """Encode the layout of a tensor, or None where there is none: a gradient that no loss has left,
    say.

    Example:
        >>> decode_header(encode_header(None)) is None
        True
    """
    return torch.full((HEADER_SIZE,), -1) if layout is None else layout.encode()


def decode_header(header: Tensor) -> Layout | None:
    """Decode what `encode_header` returned."""
    return None if header[0] < 0 else Layout.decode(header)


def flatten_memory(tensor: Tensor) -> Tensor:
    """Return a view of a dense tensor's values in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def view_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor on the CPU."""
    array: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


# --- handshake -----------------------------------------------------------------------------------


def make_handshake(step: int, batch: Batch, *, training: bool) -> Tensor:
    """Encode the number of a step, the size of its batch, and a checksum of inputs and targets."""
    checksum = 0
    for tensor in batch.tensors:
        checksum = zlib.crc32(view_bytes(_select_checksum_values(tensor)), checksum)
    return torch.tensor([step, int(training), batch.samples, checksum])


def _select_checksum_values(tensor: Tensor) -> Tensor:
    """Return all values of a tensor on the CPU, and a sample of those on an accelerator.

    The checksum runs on the CPU, and copying a whole batch back would cost more than it proves.
    """
    if tensor.device.type == "cpu":
        return tensor
    values = tensor.reshape(-1)
    return values[:: max(1, len(values) // _CHECKSUM_VALUES)].cpu()


def check_handshake(their_rank: int, theirs: list[int], our_rank: int, ours: list[int]) -> None:
    """Check that two ranks are at the same step with the same batch.

    Raises:
        BadInput: another step, another batch size, or other values.

    Example:
        >>> check_handshake(0, [7, 1, 64, 123], 1, [7, 1, 64, 123])
    """
    if theirs[:2] != ours[:2]:
        raise BadInput(
            f"Rank {their_rank} is at {_name_step(theirs)}, but rank {our_rank} at "
            f"{_name_step(ours)}: all ranks must make the same calls of step, flush, predict and "
            "gather."
        )
    if theirs != ours:
        raise BadInput(
            f"In step {ours[0]} rank {their_rank} has a batch of {theirs[2]} (checksum "
            f"{theirs[3]:08x}), but rank {our_rank} one of {ours[2]} (checksum {ours[3]:08x}): "
            "their loaders must give the same batches. Shuffle with the same seed on all ranks "
            "(a generator of its own), and make augmentation a function of seed, epoch and index."
        )


def _name_step(handshake: list[int]) -> str:
    step, training, *_ = handshake
    return f"step {step} of {'training' if training else 'prediction'}"
