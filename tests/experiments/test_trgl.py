"""TRGL's recipes against the settings of its official code."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import localprop as lp
from localprop import experiments
from localprop.experiments import trgl
from localprop.experiments.blank_data import make_blank_dataset
from localprop.methods.parse import parse_rule
from localprop.methods.trgl import KineticPenalty
from localprop.rule.local_loss import LocalLoss
from localprop.training.build import build, build_phase_schedule
from localprop.training.config import Config
from localprop.training.learning_rates import lr_at
from tests.helpers.recipes import cut_network, find_layers, parse_recipe_rule


def find_config(name: str) -> Config:
    """The config of a recipe."""
    return experiments.find(name).config


def test_images() -> None:
    cifar = find_config("resnet101_cifar100_trgl_k2")
    tiny = find_config("resnet101_tinyimagenet_trgl_k4")
    assert cifar.padding == "zeros"
    assert cifar.mean == (0.4914, 0.4822, 0.4465)
    assert cifar.std == (0.247, 0.2435, 0.2616)
    assert (tiny.augment, tiny.padding) == ("crop,flip", "zeros")
    assert tiny.mean == (0.4802, 0.4481, 0.3975)
    assert tiny.std == (0.277, 0.2691, 0.2821)
    assert find_config("resnet101_cifar100_trgl_baseline_e2e").padding == "zeros"
    assert find_config("swin_t_cifar100_trgl_k4").padding == "zeros"
    assert find_config("swin_t_cifar10_trgl_k4").padding is None  # reflection


@pytest.mark.parametrize(
    ("name", "penalty"),
    [
        ("resnet101_imagenet_trgl_k2", lp.KineticPenalty(tau=500000.0, late_factor=2.0)),
        ("resnet101_cifar100_trgl_k2", lp.KineticPenalty(tau=0.5, growth=1.0, every=50)),
        ("resnet152_cifar100_trgl_k2", lp.KineticPenalty(tau=0.5, growth=1.0, every=50)),
        ("resnet101_cifar100_trgl_baseline_plain_k2", lp.NoPenalty()),
        ("swin_t_cifar10_trgl_k4", lp.KineticPenalty(tau=10.0)),
    ],
)
def test_penalties(name: str, penalty: KineticPenalty | lp.NoPenalty) -> None:
    assert parse_recipe_rule(name).penalty == penalty


@pytest.mark.parametrize(
    ("form", "epochs"), [("sequential", ["50", "60"]), ("multilap", ["10", "12"])]
)
def test_modules_in_turn(form: str, epochs: list[str]) -> None:
    config = find_config(f"resnet101_cifar100_trgl_{form}_k2")
    assert re.findall(r"for (\d+) on \d", config.phases or "") == epochs
    assert config.epochs == 110  # a whole number of cycles


def test_the_multiplier_of_a_module_in_turn_waits_for_it() -> None:
    """While the first module trains, the last one's multiplier does not grow."""
    config = find_config("resnet101_cifar100_trgl_sequential_k2")
    assert config.phases is not None
    phases = config.phases.replace("every=50", "every=1")
    config = replace(config, phases=phases, model="resnet14", cuts=(3,), batch_size=4, device="cpu")
    dataset = make_blank_dataset(config)
    phase_schedule = build_phase_schedule(config, dataset, build(config, dataset))
    batch = torch.randn(4, 3, 32, 32), torch.randint(100, (4,))
    with phase_schedule.activate_phase(1) as learner:
        learner.step(batch)
    with phase_schedule.activate_phase(51) as learner:
        multiplier = find_loss(learner, 1).multiplier
        assert isinstance(multiplier, torch.Tensor)
        assert multiplier == 1
        learner.step(batch)
        assert multiplier > 2
    assert find_loss(phase_schedule.at(1)[0], 0).calls == 1


def find_loss(learner: lp.Learner, module: int) -> nn.Module:
    """The local loss of a module."""
    head = learner.heads[str(module)]
    assert isinstance(head, nn.ModuleDict)
    return head["loss"]


@pytest.mark.parametrize(
    ("network", "pools"), [("resnet50", [16, 8, 8]), ("resnet101", [8] * 3), ("resnet152", [8] * 3)]
)
def test_features_and_pools_on_tinyimagenet(network: str, pools: list[int]) -> None:
    """Features have sides of 32, 16, 8 and 4. Heads have the official code's pools."""
    config = find_config(f"{network}_tinyimagenet_trgl_k4")
    layers = find_layers(config)
    with torch.device("meta"):
        wiring = lp.wire(parse_rule(config.method), cut_network(config))
    assert make_blank_dataset(replace(config, batch_size=2)).shape == (3, 64, 64)
    assert list(dict.fromkeys(shape[2] for shape in layers.shapes[:-1])) == [32, 16, 8, 4]
    found = []
    for module in range(3):
        head = wiring.heads[str(module)]
        assert isinstance(head, nn.ModuleDict)
        aux = head["aux"]
        assert isinstance(aux, nn.Sequential)
        found.append(aux[2].kernel_size)
    assert found == [(pool, pool) for pool in pools]


@pytest.mark.parametrize("name", ["resnet101_cifar100", "resnet152_tinyimagenet"])
def test_end_to_end_training(name: str) -> None:
    recipe = experiments.find(f"{name}_trgl_baseline_e2e")
    config = recipe.config
    assert (config.weight_decay, config.label_smoothing) == (1e-4, 0.1)
    assert (config.lr, config.batch_size) == (0.1, 256)
    assert (config.milestones, config.lr_factor, config.epochs) == ((120, 160, 200), 0.2, 300)
    assert recipe.claimed == recipe.published  # a script of the official code has all settings


@pytest.mark.parametrize("data", ["stl10", "cifar10"])
def test_the_modules_of_swin_are_its_stages(data: str) -> None:
    """Three of them end with a patch merging."""
    config = find_config(f"swin_t_{data}_trgl_k4")
    layers = find_layers(config)
    ends = [layers.names[module[-1]] for module in cut_network(config).modules]
    assert ends == ["layers.3", "layers.6", "layers.13", "layers.15"]
    sides = {"stl10": [12, 6, 3], "cifar10": [4, 2, 1]}
    assert [layers.shapes[cut][1] for cut in config.cuts or ()] == sides[data]


def test_swin_on_stl10_is_that_of_the_official_command() -> None:
    """96-pixel images, windows of 6, no clipping, a warm-up from 1 % of lr, a tenth of it last."""
    for recipe in map(experiments.find, experiments.names("swin_t_stl10")):
        config = recipe.config
        assert (config.model, config.optimizer) == ("swin_t:window=6", "adamw")
        assert make_blank_dataset(replace(config, batch_size=2)).shape == (3, 96, 96)
        assert config.clip_norm is None
        assert (config.batch_size, config.weight_decay, config.epochs) == (1024, 0.05, 300)
        rates = [round(lr_at(config, epoch), 4) for epoch in (5, 10, 20, 21)]
        assert rates == [0.0015, 0.0032, 0.0067, 0.007]
        assert lr_at(config, 1) == pytest.approx(0.01 * 0.007)
        assert lr_at(config, 300) == pytest.approx(0.1 * 0.007, rel=1e-3)
        assert "window" not in recipe.notes + recipe.readings


def test_the_penalty_of_swin_reads_paths_after_they_are_dropped() -> None:
    config = find_config("swin_t_stl10_trgl_k4")
    with torch.device("meta"):
        wiring = lp.wire(parse_rule(config.method), cut_network(config))
    head = wiring.heads["1"]
    assert isinstance(head, nn.ModuleDict)
    paths = [f"layers.{layer}.drop_path{i}" for layer in (4, 5) for i in (1, 2)]
    loss = head["loss"]
    assert isinstance(loss, LocalLoss)
    assert loss.taps == tuple(paths)


def test_resnet50_on_tinyimagenet_is_not_claimed() -> None:
    """No official command trains it."""
    for name in experiments.names("resnet50_tinyimagenet"):
        assert experiments.find(name).claimed.startswith("not claimed"), name
    local = experiments.find("resnet50_tinyimagenet_trgl_k4")
    assert "Cuts and pools of ResNet-50" in local.readings
    assert find_config(local.name).cuts == (3, 7, 13)
    assert experiments.find("resnet152_tinyimagenet_trgl_k4").readings == ""


def test_known_differences_are_notes_and_the_rest_readings() -> None:
    unsure = re.compile("our reading|not known|not stated|inferred")
    for recipe in trgl.make_recipes():
        assert not unsure.search(recipe.notes), recipe.name
        assert bool(unsure.search(recipe.readings)) == bool(recipe.readings), recipe.name
    assert "orthogonal" not in experiments.find("swin_t_stl10_trgl_k4").notes
    assert experiments.find("resnet110_stl10_trgl_baseline_e2e").readings
