"""Multilayer perceptrons: their layers and options."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localprop import models
from localprop.errors import BadInput
from localprop.network.find_layers import layers_of


def type_names(modules: nn.Sequential) -> list[str]:
    return [type(module).__name__ for module in modules]


def test_an_mlp_has_a_nonlinearity_after_each_hidden_layer() -> None:
    model = models.mlp(12, hidden=(5, 4), num_classes=3)
    assert type_names(model) == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert model(torch.zeros(2, 3, 2, 2)).shape == (2, 3)
    assert len(models.mlp(4, hidden=())) == 2
    with pytest.raises(BadInput, match="at least 1"):
        models.mlp(4, hidden=(0,))


def test_the_mlp_of_local_losses() -> None:
    """Batch norm comes before the nonlinearity, and dropout at the start of the next layer.

    A local loss thus reads features before dropout.
    """
    model = models.create_model("mlp:6,5,norm=True,leaky=True,dropout=0.5", 3, (4,))
    assert isinstance(model, nn.Sequential)
    names = "Flatten Linear BatchNorm1d LeakyReLU Sequential BatchNorm1d LeakyReLU Sequential"
    assert " ".join(type_names(model)) == names
    second_layer = model[4]
    assert isinstance(second_layer, nn.Sequential)
    assert type_names(second_layer) == ["Dropout", "Linear"]
    assert layers_of(model, torch.zeros(2, 4)).names == ("3", "6", "7")
