"""InfoPro's recipes: figures of its tables, and weights of its losses."""

from __future__ import annotations

import pytest

import localprop as lp
from localprop import experiments
from tests.helpers.recipes import parse_recipe_rule

# Test errors in % of table 2, and of one row of table 3, copied independently of the recipes.
ERRORS = {
    "resnet32_cifar10_e2e": "7.37 +- 0.10",
    "resnet32_cifar10_greedy_k16": "24.59 +- 0.83",
    "resnet32_cifar10_dgl_k16": "16.21 +- 0.36",
    "resnet32_cifar10_infopro_softmax_k16": "14.23 +- 0.42",
    "resnet32_cifar10_infopro_contrast_k16": "12.75 +- 0.11",
    "resnet32_cifar10_dgl_k2": "8.69 +- 0.12",
    "resnet110_cifar10_e2e": "6.50 +- 0.34",
    "resnet110_cifar10_infopro_contrast_k2": "6.42 +- 0.08",
    "resnet110_cifar10_infopro_contrast_balanced_k3": "6.74 +- 0.12",
    "densenet_bc_100_12_cifar10_dgl_k8": "6.82 +- 0.21",
    "resnet110_svhn_infopro_contrast_k4": "3.28 +- 0.11",
    "resnet110_stl10_greedy_k16": "30.38 +- 0.39",
    "resnet110_stl10_infopro_softmax_k2": "21.02 +- 0.51",
}
NETWORKS = (
    "resnet32_cifar10",
    "resnet110_cifar10",
    "densenet_bc_100_12_cifar10",
    "resnet110_svhn",
    "resnet110_stl10",
)
ROWS = ("greedy", "dgl", "infopro_softmax", "infopro_contrast")


@pytest.mark.parametrize(("name", "error"), ERRORS.items())
def test_figures_of_the_tables(name: str, error: str) -> None:
    assert experiments.find(name).published.startswith(f"test error {error} %")


def test_all_rows_of_table_2_are_there() -> None:
    wanted = {
        f"{network}_{row}_k{k}" for network in NETWORKS for row in ROWS for k in (2, 4, 8, 16)
    }
    assert wanted <= {*experiments.names()}


@pytest.mark.parametrize("network", ["resnet101", "resnet152", "resnext101_32x8d"])
@pytest.mark.parametrize("row", ["e2e", "infopro_k2"])
def test_imagenet_has_the_batch_of_the_official_commands(network: str, row: str) -> None:
    recipe = experiments.find(f"{network}_imagenet_{row}")
    assert (recipe.config.batch_size, recipe.config.lr) == (1024, 0.4)
    assert ("published memory fits half of it" in recipe.notes) == network.startswith("resnext")


def test_what_the_tables_leave_open() -> None:
    assert "head of DGL" in experiments.find("resnet32_cifar10_dgl_k4").readings
    for name in ("resnet110_cifar10_infopro_contrast_balanced_k3", "resnet32_cifar10_greedy_k4"):
        assert experiments.find(name).claimed == experiments.find(name).published != ""


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet32_cifar10_infopro_contrast_k16", [(5, 0.2), (0.05, 0.5)]),
        ("resnet110_stl10_contsup_r1e_softmax_decoder_k8", [(20, 5), (0.2, 1)]),
        # ContSup's official code has 5, 0, 0.5, 0 here, by mistake.
        ("resnet110_svhn_contsup_r1e_softmax_decoder_k4", [(5, 0.5), (0, 1)]),
    ],
)
def test_weights_of_the_first_and_the_last_local_module(
    name: str, weights: list[tuple[float, float]]
) -> None:
    loss = parse_recipe_rule(name).loss
    assert isinstance(loss, lp.Terms)
    assert [(term.first, term.last) for term in loss.terms] == weights
