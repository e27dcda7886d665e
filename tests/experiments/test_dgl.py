"""DGL's recipes: initial weights of the heads."""

from __future__ import annotations

import pytest

import localprop as lp
from localprop import experiments
from tests.helpers.recipes import parse_recipe_rule


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("vgg13_imagenet_dgl_k4", 0.01),
        ("vgg19_imagenet_dgl_k2", 0.01),
        ("resnet152_imagenet_dgl_k2", 0.0),
    ],
)
def test_only_heads_of_vggs_have_narrow_initial_weights(name: str, std: float) -> None:
    assert parse_recipe_rule(name).aux == lp.MlpSrHead(std=std)
    assert "0.01" not in experiments.find(name).notes
