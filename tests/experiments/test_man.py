"""Recipes of MAN and MAN++."""

from __future__ import annotations

import pytest
import torch

import localprop as lp
from localprop import experiments
from tests.helpers.points import count_parameters, list_convs
from tests.helpers.recipes import cut_network, parse_recipe_rule


def find_terms(rule: lp.Rule) -> tuple[lp.Term, ...]:
    """The terms of the loss that MAN computes with the next module's layers."""
    assert isinstance(rule.loss, lp.NextLayerLoss)
    assert isinstance(rule.loss.loss, lp.Terms)
    return rule.loss.loss.terms


def test_weights_of_infopro_with_man() -> None:
    """Reconstruction has 4.64, 4.29 and 3.93 in ResNet stages 1 to 3, and the task a tenth."""
    rule = parse_recipe_rule("resnet32_cifar10_infopro_man_k16")
    weights = [(term.first, term.last) for term in find_terms(rule)]
    assert weights == [(4.643, 3.929), (0.4643, 0.3929)]
    assert rule.aux == lp.NextLayerHead(lp.Head(convs=2))


def test_only_the_row_of_the_official_command_is_claimed() -> None:
    claimed = experiments.find("resnet32_cifar10_infopro_man_k16").claimed
    assert claimed.startswith("test error 9.65 %")
    assert experiments.find("resnet110_cifar10_infopro_man_k55").claimed.startswith("not claimed")


def test_man_plus_on_imagenet_says_when_its_average_moves() -> None:
    """The official script moves it before the backward pass, and this run after it."""
    names = experiments.names("imagenet_man_plus")
    assert len(names) == 6
    for name in names:
        recipe = experiments.find(name)
        assert "moves the average before the backward pass" in recipe.readings
        assert "our reading" in recipe.readings
        assert recipe.claimed == ""


@pytest.mark.parametrize("k", [2, 4])
def test_man_plus_on_imagenet(k: int) -> None:
    recipe = experiments.find(f"resnet152_imagenet_man_plus_k{k}")
    rule, config = parse_recipe_rule(recipe.name), recipe.config
    assert [term.first for term in find_terms(rule)] == [5.0, 0.75]
    assert isinstance(rule.aux, lp.NextLayerHead)
    assert rule.aux.scaled
    assert (config.lr, config.batch_size, config.epochs) == (0.4, 1024, 90)
    assert "decoder" not in recipe.readings  # the official ones, below


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet101_imagenet_man_plus_k2", [512]),
        ("resnet101_imagenet_man_plus_k4", [512, 1024, 1024]),
        ("resnet152_imagenet_man_plus_k4", [512, 1024, 1024]),
        ("resnet152_imagenet_infopro_man_k4", [1024, 1024, 1024]),
    ],
)
def test_heads_and_decoders_on_imagenet(name: str, channels: list[int]) -> None:
    """The counts of parameters are those of the official code's two forms."""
    heads = {512: 4_643_560, 1024: 5_135_336}
    decoders = {512: 106_699, 1024: 232_011}
    config = experiments.find(name).config
    normalization = lp.Normalization()
    with torch.device("meta"):
        wiring = lp.wire(parse_recipe_rule(name), cut_network(config), normalization=normalization)
    own = [wiring.heads.get_submodule(str(k)) for k in range(len(channels))]
    assert [count_parameters(head.get_submodule("aux.head")) for head in own] == [
        heads[width] for width in channels
    ]
    assert [count_parameters(head.get_submodule("loss")) for head in own] == [
        decoders[width] for width in channels
    ]
    convs = list_convs(own[-1].get_submodule("loss"))
    assert [(conv.out_channels, conv.kernel_size[0]) for conv in convs] == {
        512: [(128, 1), (32, 3), (12, 3), (3, 3)],
        1024: [(192, 1), (64, 1), (32, 3), (12, 3), (3, 3)],
    }[channels[-1]]


@pytest.mark.parametrize(
    ("network", "plus_cuts"), [("resnet101", (6, 16, 24)), ("resnet152", (10, 25, 37))]
)
def test_man_on_imagenet_says_whose_cuts_it_has(network: str, plus_cuts: tuple[int, ...]) -> None:
    recipe = experiments.find(f"{network}_imagenet_infopro_man_k4")
    assert recipe.config.cuts == experiments.find(f"{network}_imagenet_hpff_k4").config.cuts
    assert f"MAN++ cuts after layers {plus_cuts}" in recipe.readings
    assert experiments.find(f"{network}_imagenet_man_plus_k4").config.cuts == plus_cuts
    assert recipe.claimed.startswith("not claimed")
