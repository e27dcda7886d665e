"""Recipes: learning rates, weights, images and epochs of the papers."""

from __future__ import annotations

import pytest

from localprop import recipes
from localprop.training.expression import rule_of
from localprop.training.trainer import lr_at

LEARNING_RATES = {1: 0.01, 2: 0.08897, 5: 0.32523, 10: 0.71408, 11: 0.79071, 80: 0.4, 160: 0.0}


@pytest.mark.parametrize("name", ["resnet32_cifar10_dgl_k16", "resnet110_svhn_contsup_r1e_softmax_decoder_k2"])
def test_learning_rates_of_infopros_setting(name: str) -> None:
    config = recipes.find(name).config
    assert (config.epochs, config.batch_size, config.nesterov, config.weight_decay) == (160, 1024, True, 1e-4)
    assert [lr_at(config, e) for e in LEARNING_RATES] == pytest.approx([*LEARNING_RATES.values()], rel=1e-4, abs=1e-12)


def test_learning_rates_of_other_settings() -> None:
    auglocal = recipes.find("resnet34_imagenet_auglocal_d4").config  # 0.2 (1 + cos(pi e / 200)) for e from 0
    assert [lr_at(auglocal, e) for e in (1, 101)] == pytest.approx([0.4, 0.2])
    predsim = recipes.find("vgg8b_cifar10_predsim").config
    assert [lr_at(predsim, e) for e in (200, 201, 301, 351, 376)] == pytest.approx([5e-4 / 4**i for i in range(5)])
    interlocking = recipes.find("resnet34_cifar10_interlocking_wise2_k4").config
    assert [lr_at(interlocking, e) for e in (91, 92, 137, 183)] == pytest.approx([0.1, 0.01, 1e-3, 1e-4])
    assert {lr_at(recipes.find("resnet110_stl10_trgl_k4").config, e) for e in (1, 300)} == {0.002}


def test_weights_of_infopro_at_the_first_and_the_last_local_module() -> None:
    def weights(name: str) -> list[tuple[float, float | None]]:
        return [(term.first, term.last) for term in rule_of(recipes.find(name).config.method).loss.terms]  # type: ignore[attr-defined]

    assert weights("resnet32_cifar10_infopro_contrast_k16") == [(5, 0.2), (0.05, 0.5)]
    assert weights("resnet110_stl10_contsup_r1e_softmax_decoder_k8") == [(20, 5), (0.2, 1)]
    assert weights("resnet110_svhn_contsup_r1e_softmax_decoder_k4") == [
        (5, 0.5),
        (0, 1),
    ]  # not the official code's 0, 0


def test_images_of_predsim() -> None:
    cifar, fashion = (recipes.find(f"vgg8b_{data}_predsim").config for data in ("cifar10", "fashion_mnist"))
    assert (cifar.augment, cifar.padding) == ("crop,flip", "zeros")
    assert (fashion.augment, fashion.crop_pad) == ("crop,flip", 2)
    assert (fashion.mean, fashion.std) == ((0.286,), (0.353,))
