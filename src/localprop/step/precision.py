"""Autocast around forwards and losses, and around nothing else."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class Precision:
    """The precision of a step.

    Args:
        device: where it runs.
        dtype: of autocast, or None.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None) -> None:
        self._kind = device.type
        self._dtype = dtype

    def forward(self) -> AbstractContextManager[object]:
        """Without a cache: one would keep casts of all weights alive, and share their graph between micro-batches."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._kind, self._dtype, cache_enabled=False)

    def backward(self) -> AbstractContextManager[object]:
        """Backwards run outside, be it our autocast or a host's; they follow the dtypes of their forwards."""
        return torch.autocast(self._kind, enabled=False) if torch.is_autocast_enabled(self._kind) else nullcontext()
