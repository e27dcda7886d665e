"""TRGL's recipes against the settings of its official code."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import localprop as lp
from localprop import recipes
from localprop.recipes.standin import blank
from localprop.recipes.trgl import recipes as family
from localprop.training.config import Config, build, course_of
from localprop.training.expression import rule_of

MULTIPLIED = lp.Kinetic(tau=0.5, growth=1.0, every=50)


def config_of(name: str) -> Config:
    return recipes.find(name).config


def test_images() -> None:
    cifar, tiny = (config_of(f"resnet101_{data}") for data in ("cifar100_trgl_k2", "tinyimagenet_trgl_k4"))
    assert (cifar.padding, cifar.mean, cifar.std) == ("zeros", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
    assert (tiny.augment, tiny.padding, tiny.mean, tiny.std) == (
        "crop,flip",
        "zeros",
        (0.4802, 0.4481, 0.3975),
        (0.277, 0.2691, 0.2821),
    )
    assert config_of("resnet101_cifar100_trgl_baseline_e2e").padding == "zeros"
    assert config_of("swin_t_cifar100_trgl_k4").padding == "zeros"
    assert config_of("swin_t_cifar10_trgl_k4").padding is None  # reflection


def test_penalties() -> None:
    def penalty(name: str) -> object:
        return rule_of(config_of(name).method).penalty

    assert penalty("resnet101_imagenet_trgl_k2") == lp.Kinetic(tau=500000.0, late=2.0)
    assert penalty("resnet101_cifar100_trgl_k2") == penalty("resnet152_cifar100_trgl_k2") == MULTIPLIED
    assert penalty("resnet101_cifar100_trgl_baseline_plain_k2") == lp.NoPenalty()
    assert penalty("swin_t_cifar10_trgl_k4") == lp.Kinetic(tau=10.0)


def test_modules_in_turn() -> None:
    for form, epochs in {"sequential": ("50", "60"), "multilap": ("10", "12")}.items():
        config = config_of(f"resnet101_cifar100_trgl_{form}_k2")
        assert re.findall(r"for (\d+) on \d", config.phases or "") == [*epochs]
        assert config.epochs == 110  # a whole number of laps


def test_the_multiplier_of_a_module_in_turn_waits_for_it() -> None:
    """While the first module is trained, the last one's does not grow."""
    config = config_of("resnet101_cifar100_trgl_sequential_k2")
    assert config.phases is not None
    phases = config.phases.replace("every=50", "every=1")
    config = replace(config, phases=phases, model="resnet14", cuts=(3,), batch_size=4, device="cpu")
    dataset = blank(config)
    course = course_of(config, dataset, build(config, dataset))
    batch = torch.randn(4, 3, 32, 32), torch.randint(100, (4,))
    with course.learning(1) as learner:
        learner.step(batch)
    with course.learning(51) as learner:
        assert learner.heads["1"]["loss"].multiplier == 1
        learner.step(batch)
        assert learner.heads["1"]["loss"].multiplier > 2
    assert course.at(1)[0].heads["0"]["loss"].calls == 1


@pytest.mark.parametrize(
    ("network", "pools"), [("resnet50", [16, 8, 8]), ("resnet101", [8] * 3), ("resnet152", [8] * 3)]
)
def test_tinyimagenet_s_maps_and_pools(network: str, pools: list[int]) -> None:
    """Maps of 32, 16, 8 and 4, and the official code's pools, module after module."""
    config = replace(config_of(f"{network}_tinyimagenet_trgl_k4"), batch_size=2)
    dataset = blank(config)
    with torch.device("meta"):
        model = lp.models.create_model(config.model, dataset.num_classes, dataset.shape)
        found = lp.layers_of(model, dataset.sample(2))
        partition = lp.Partition.at(found, config.cuts)
        wiring = lp.wire(rule_of(config.method), partition, task=lp.CrossEntropy())
    assert dataset.shape == (3, 64, 64)
    assert list(dict.fromkeys(shape[2] for shape in found.shapes[:-1])) == [32, 16, 8, 4]
    assert [wiring.heads[str(k)]["aux"][2].kernel_size for k in range(3)] == [(pool, pool) for pool in pools]


@pytest.mark.parametrize("name", ["resnet101_cifar100", "resnet152_tinyimagenet"])
def test_end_to_end_training(name: str) -> None:
    recipe = recipes.find(f"{name}_trgl_baseline_e2e")
    config = recipe.config
    assert (config.weight_decay, config.label_smoothing, config.lr, config.batch_size) == (1e-4, 0.1, 0.1, 256)
    assert (config.milestones, config.lr_factor, config.epochs) == ((120, 160, 200), 0.2, 300)
    assert recipe.claim == recipe.published  # a script of the official code says all


def test_swin_s_modules_are_its_stages() -> None:
    config = config_of("swin_t_cifar10_trgl_k4")
    with torch.device("meta"):
        found = lp.layers_of(lp.models.create_model(config.model, 10, (3, 32, 32)), torch.zeros(2, 3, 32, 32))
    ends = [found.names[own[-1]] for own in lp.Partition.at(found, config.cuts).modules]
    assert ends == ["features.2", "features.4", "features.6", "features.7.1"]  # three end with a merging of patches
    assert (config.clip_norm, config.epochs, config.warmup_epochs, config.optimizer) == (5.0, 300, 20, "adamw")


def test_what_is_known_to_differ_is_no_reading() -> None:
    unsure = re.compile("our reading|not known|not stated|inferred")
    for recipe in family():
        assert not unsure.search(recipe.notes), recipe.name
        assert bool(unsure.search(recipe.readings)) == bool(recipe.readings), recipe.name
    assert "orthogonal" not in recipes.find("swin_t_stl10_trgl_k4").notes
    assert recipes.find("resnet110_stl10_trgl_baseline_e2e").readings
