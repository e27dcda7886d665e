"""The device of a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from localprop.errors import BadInput

if TYPE_CHECKING:
    import torch


def device_of(name: str) -> torch.device:
    """The device of a name, "auto" being the accelerator if there is one and else the CPU.

    Raises:
        BadInput: no device of torch's, or one that this machine lacks.

    Example:
        >>> device_of("cpu")
        device(type='cpu')
    """
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    own = accelerator and name in ("auto", accelerator.type) and "LOCAL_RANK" in os.environ
    if own and accelerator:  # torchrun's: a device for each rank of a machine
        return torch.device(accelerator.type, int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count())
    if name == "auto":
        return accelerator or torch.device("cpu")
    there = "cpu" + (f" and {accelerator.type} (0..{torch.accelerator.device_count() - 1})" if accelerator else "")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"device={name!r} is unknown to torch: choose auto; this machine has {there}.") from error
    if device.type == "cpu" and device.index:
        raise BadInput(f"device={name!r} is not available: there is one cpu; this machine has {there}.")
    exists = accelerator and device.type == accelerator.type and (device.index or 0) < torch.accelerator.device_count()
    if not exists and device.type != "cpu":
        raise BadInput(f"device={name!r} is not available: choose auto; this machine has {there}.")
    return device
