"""Autocast, and the choice of kernels, around forwards and losses, and around nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class Precision:
    """The precision of a step's forwards and losses.

    Args:
        device: where the step runs.
        dtype: of autocast, or None.
        second_order: whether some loss is differentiated twice.

    Attributes:
        device_type: the type of the device.
        is_active: whether forwards run in any other way than the host's.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype | None, *, second_order: bool = False
    ) -> None:
        self.device_type = device.type
        self.is_active = dtype is not None or second_order
        self._dtype = dtype
        self._second_order = second_order

    def forward(self) -> AbstractContextManager[object]:
        """Run forwards under autocast and, where they are differentiated twice, without fused
        attention, which cannot be.
        """
        return self._without_fused_attention() if self._second_order else self._autocast()

    @contextmanager
    def _without_fused_attention(self) -> Iterator[None]:
        with self._autocast(), sdpa_kernel(SDPBackend.MATH):
            yield

    def _autocast(self) -> AbstractContextManager[object]:
        # A cache would keep casts of all weights alive, and micro-batches would share their graph.
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, self._dtype, cache_enabled=False)
