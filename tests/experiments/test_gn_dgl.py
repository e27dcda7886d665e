"""GN-DGL's recipes."""

from __future__ import annotations

import pytest
from torch import nn

import localprop as lp
from localprop import experiments
from localprop.models import ConvClassifier
from tests.helpers.modules import find_module
from tests.helpers.points import count_parameters, list_convs
from tests.helpers.recipes import find_layers, parse_recipe_rule, wire_recipe

GRID = {
    "1": (1, 2, 4, 8),
    "1a": (1, 2, 4, 8),
    "2": (1, 2, 4, 8),
    "4": (1, 2, 4, 8),
    "8": (1, 2, 4),
    "16": (1, 2),
}


def test_the_grid_of_modules_and_groups() -> None:
    rows = [f"g{groups}_k{k}" for k, numbers in GRID.items() for groups in numbers]
    wanted = {
        f"{network}_{data}_gn_dgl_{row}"
        for network in ("resnet32", "resnet32_x2")
        for data in ("cifar10", "cifar100")
        for row in rows
    }
    assert {*experiments.names("gn_dgl")} == wanted
    assert experiments.find("resnet32_cifar10_gn_dgl_g2_k1a").claimed.startswith("not claimed")


@pytest.mark.parametrize(
    ("network", "hidden", "parameters"), [("resnet32", 128, 239_912), ("resnet32_x2", 256, 946_728)]
)
def test_hidden_layers_widen_with_the_network(network: str, hidden: int, parameters: int) -> None:
    """Each of the two heads at the end of C channels has 9 C 2C + 4C + (2C + 1) H + (H + 1) 10."""
    wiring = wire_recipe(f"{network}_cifar10_gn_dgl_g2_k2")
    heads = [find_module(wiring.heads, f"{k}.aux", nn.Module) for k in (0, 1)]
    assert sum(map(count_parameters, heads)) == parameters
    classifier = find_module(wiring.layers.model, "layers.16", ConvClassifier)
    assert classifier.hidden.out_features == hidden


def test_the_form_1_is_end_to_end_in_one_module() -> None:
    names = [name for name in experiments.names("gn_dgl") if name.endswith("_k1")]
    assert len(names) == 16
    for name in names:
        recipe = experiments.find(name)
        assert parse_recipe_rule(name) == lp.end_to_end()
        assert recipe.config.modules == 1
        assert recipe.published == ""


def test_the_form_1_groups_all_blocks() -> None:
    model = find_layers(experiments.find("resnet32_cifar10_gn_dgl_g2_k1").config).model
    groups = [conv.groups for conv in list_convs(model)]
    assert groups == [1, *[2] * (30 + 2), 1]  # the stem, 15 blocks with 2 shortcuts, the classifier


def test_what_the_recipes_say() -> None:
    for name in experiments.names("gn_dgl"):
        recipe = experiments.find(name)
        assert "shortcut" not in recipe.notes + recipe.readings
        assert ("CIFAR-10's moments" in recipe.notes) == ("cifar100" in name)
