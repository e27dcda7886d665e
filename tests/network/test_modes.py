"""Evaluation mode for a while."""

from __future__ import annotations

import pytest
from torch import nn

from localprop.network.modes import evaluation_mode


def test_each_module_gets_its_mode_back_even_after_a_failure() -> None:
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    inside: list[bool] = []

    def fail() -> None:
        with evaluation_mode(network):
            inside.extend(module.training for module in network.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [False, False, False]
    assert [module.training for module in network.modules()] == [True, True, False]
