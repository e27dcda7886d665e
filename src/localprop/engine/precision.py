"""Autocast, and the choice of kernels, around forwards and losses, and around nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class Precision:
    """The precision of a step.

    Args:
        device: where it runs.
        dtype: of autocast, or None.
        twice: whether some loss is differentiated twice.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype | None, *, second_order: bool = False
    ) -> None:
        self._kind = device.type
        self._dtype = dtype
        self._second_order = second_order

    def forward(self) -> AbstractContextManager[object]:
        """Forwards run under autocast and, if they are differentiated twice, without fused attention, which cannot be."""
        return self._without_fused_attention() if self._second_order else self._autocast()

    @contextmanager
    def _without_fused_attention(self) -> Iterator[None]:
        with self._autocast(), sdpa_kernel(SDPBackend.MATH):
            yield

    def _autocast(self) -> AbstractContextManager[object]:
        """Without a cache: one would keep casts of all weights alive, and share their graph between micro-batches."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._kind, self._dtype, cache_enabled=False)

    def backward(self) -> AbstractContextManager[object]:
        """Backwards run outside, be it our autocast or a host's; they follow the dtypes of their forwards."""
        return (
            torch.autocast(self._kind, enabled=False)
            if torch.is_autocast_enabled(self._kind)
            else nullcontext()
        )
