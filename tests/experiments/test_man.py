"""Recipes of MAN and MAN++."""

from __future__ import annotations

import pytest

import localprop as lp
from localprop import experiments
from tests.helpers.recipes import parse_recipe_rule


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
def test_man_plus_on_imagenet_has_infopros_decoder(k: int) -> None:
    name = f"resnet152_imagenet_man_plus_k{k}"
    rule, config = parse_recipe_rule(name), experiments.find(name).config
    assert [term.first for term in find_terms(rule)] == [5.0, 0.75]
    assert isinstance(rule.aux, lp.NextLayerHead)
    assert rule.aux.scaled
    assert (config.lr, config.batch_size, config.epochs) == (0.4, 1024, 90)
