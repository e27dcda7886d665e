"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from localprop.errors import BadInput
from localprop.training.device import find_device


def test_devices_are_found_by_name() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert (find_device("auto").type == "cpu") == (not torch.accelerator.is_available())
    with pytest.raises(BadInput, match="this machine has cpu"):
        find_device("cuda:99")
