"""TF32, which torch has as a setting of the process. No CPU has it, so only the setting shows."""

from __future__ import annotations

import pytest
import torch

from localprop.training.build import prepare
from localprop.training.config import Config
from localprop.training.tf32 import use_tf32
from localprop.training.trainer import train


@pytest.mark.parametrize(("tf32", "setting"), [(True, "high"), (False, "highest")])
def test_the_setting_is_that_of_the_steps(tf32: bool, setting: str) -> None:
    seen: list[str] = []
    config = Config(model="mlp:8", epochs=2, limit=128, tf32=tf32)
    dataset, learner = prepare(config)
    read = torch.get_float32_matmul_precision
    train(learner, dataset, config, on_step=lambda *_: seen.append(read()))
    assert {*seen} == {setting}
    assert read() == "highest"


def test_a_failure_puts_the_setting_back() -> None:
    with pytest.raises(ValueError, match="no"), use_tf32(True):
        raise ValueError("no")
    assert torch.get_float32_matmul_precision() == "highest"
