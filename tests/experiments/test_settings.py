"""Learning rates of the papers' settings."""

from __future__ import annotations

import pytest

from localprop import experiments
from localprop.training.learning_rates import lr_at

# By epoch.
INFOPRO_RATES = {1: 0.01, 2: 0.08897, 5: 0.32523, 10: 0.71408, 11: 0.79071, 80: 0.4, 160: 0.0}


def find_rates(name: str, *epochs: int) -> list[float]:
    """The learning rates of a recipe in some epochs."""
    config = experiments.find(name).config
    return [lr_at(config, epoch) for epoch in epochs]


@pytest.mark.parametrize("family", ["gn_dgl", "backlink"])
def test_cifar100_has_the_moments_of_cifar10_in_infopros_setting(family: str) -> None:
    moments = [value / 255 for value in (125.3, 123.0, 113.9, 63.0, 62.1, 66.7)]
    recipes = [experiments.find(name) for name in experiments.names(f"cifar100_{family}")]
    assert recipes
    for recipe in recipes:
        assert [*(recipe.config.mean or ()), *(recipe.config.std or ())] == pytest.approx(moments)
        assert "CIFAR-10's moments" in recipe.notes
    assert experiments.find("resnet32_cifar10_gn_dgl_g2_k2").config.mean is None


@pytest.mark.parametrize(
    "name", ["resnet32_cifar10_dgl_k16", "resnet110_svhn_contsup_r1e_softmax_decoder_k2"]
)
def test_learning_rates_of_infopros_setting(name: str) -> None:
    config = experiments.find(name).config
    assert (config.epochs, config.batch_size) == (160, 1024)
    assert (config.nesterov, config.weight_decay) == (True, 1e-4)
    expected = pytest.approx([*INFOPRO_RATES.values()], rel=1e-4, abs=1e-12)
    assert find_rates(name, *INFOPRO_RATES) == expected


def test_learning_rates_of_auglocal_on_imagenet() -> None:
    """0.2 (1 + cos(pi e / 200)) for e from 0."""
    assert find_rates("resnet34_imagenet_auglocal_d4", 1, 101) == pytest.approx([0.4, 0.2])


def test_learning_rates_of_predsim() -> None:
    rates = find_rates("vgg8b_cifar10_predsim", 200, 201, 301, 351, 376)
    assert rates == pytest.approx([5e-4 / 4**i for i in range(5)])


def test_learning_rates_of_interlocking() -> None:
    rates = find_rates("resnet34_cifar10_interlocking_wise2_k4", 91, 92, 137, 183)
    assert rates == pytest.approx([0.1, 0.01, 1e-3, 1e-4])


def test_learning_rate_of_trgl_is_constant() -> None:
    assert find_rates("resnet110_stl10_trgl_k4", 1, 300) == [0.002, 0.002]


def test_recipes_that_say_warm_up_have_one() -> None:
    """The first epoch has a tenth of the highest learning rate or less."""
    for name in experiments.names():
        config = experiments.find(name).config
        if config.warmup:
            (first,) = find_rates(name, 1)
            assert 0 < first < config.lr / 9, name
    assert find_rates("transformer_text_solo_k2", 1, 2, 3) == pytest.approx(
        [1e-4, 5.378e-4, 9.455e-4], rel=1e-3
    )
