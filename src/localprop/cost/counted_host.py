"""The host's memory in a prediction: only its bytes are counted."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from localprop.engine.offload import Host, HostMemory


class CountedCopy:
    """Stands for a copy on the host.

    Attributes:
        numel: its elements.
        dtype: of one.
        device: where the copied tensor was.
    """

    def __init__(self, flat: Tensor) -> None:
        self.numel, self.dtype, self.device = flat.numel(), flat.dtype, flat.device


class CountedHost:
    """Counts the bytes of copies, which are nowhere.

    Attributes:
        current: bytes now.
        peak: the most at once.

    Example:
        >>> import torch
        >>> host = CountedHost()
        >>> copy = host.put(torch.zeros(256))
        >>> host.current, host.fetch(copy).shape
        (1024, torch.Size([256]))
        >>> del copy
        >>> host.current, host.peak
        (0, 1024)
    """

    def __init__(self) -> None:
        self.current = self.peak = 0

    def put(self, flat: Tensor) -> CountedCopy:
        """Count a tensor until its copy dies."""
        copy = CountedCopy(flat)
        self.current += flat.nbytes
        self.peak = max(self.peak, self.current)
        weakref.finalize(copy, self._forget, flat.nbytes)
        return copy

    def fetch(self, copy: CountedCopy) -> Tensor:
        """A tensor of the same size on the device."""
        return torch.empty(copy.numel, dtype=copy.dtype, device=copy.device)

    def wait(self, flat: Tensor) -> None:
        """Nothing is on its way."""

    def _forget(self, nbytes: int) -> None:
        self.current -= nbytes


def imitate(host: Host) -> Host:
    """The host of a prediction: bytes on the device are those without the copies.

    Where the device is the host, they count as all others do.
    """
    is_device = isinstance(host, HostMemory) and host.device.type in ("cpu", "meta")
    return HostMemory(torch.device("cpu")) if is_device else CountedHost()
