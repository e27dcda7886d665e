"""The device of a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from localprop.errors import BadInput, show

if TYPE_CHECKING:
    import torch


def find_device(name: str) -> torch.device:
    """Find the device of a name. "auto" is the accelerator if there is one, else the CPU.

    Under torchrun, "auto" and the accelerator's plain name mean one device per rank of a machine.

    Raises:
        BadInput: torch does not know the name, or this machine lacks the device.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    import torch  # imported here because the config reads this file, and --help does without torch

    accelerator = None
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
    if accelerator and name in ("auto", accelerator.type) and "LOCAL_RANK" in os.environ:
        index = int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count()
        return torch.device(accelerator.type, index)
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        available = _describe_available(accelerator)
        raise BadInput(f"device={show(name)} is unknown to torch: {available}") from error
    if not _exists(device, accelerator):
        raise BadInput(f"device={show(name)} is not available: {_describe_available(accelerator)}")
    return device


def _exists(device: torch.device, accelerator: torch.device | None) -> bool:
    import torch

    if device.type == "cpu":
        return not device.index
    if accelerator is None or device.type != accelerator.type:
        return False
    return (device.index or 0) < torch.accelerator.device_count()


def _describe_available(accelerator: torch.device | None) -> str:
    import torch

    devices = "cpu"
    if accelerator:
        devices += f" and {accelerator.type} (0..{torch.accelerator.device_count() - 1})"
    return f"choose auto; this machine has {devices}."
