"""Matrix products of float32 in TF32, which torch has as a setting of the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

TF32_NOTE = (
    "tf32=True: within steps, matrix products of float32 keep 11 significant bits; convolutions do "
    "so anyway, by torch's default."
)


@contextmanager
def use_tf32(on: bool) -> Iterator[None]:
    """Inside, matrix products of float32 are TF32 on CUDA devices that have it.

    Args:
        on: whether to change anything.

    Example:
        >>> with use_tf32(True):
        ...     torch.get_float32_matmul_precision()
        'high'
        >>> torch.get_float32_matmul_precision()
        'highest'
    """
    before = torch.get_float32_matmul_precision()
    if on:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if on:
            torch.set_float32_matmul_precision(before)
