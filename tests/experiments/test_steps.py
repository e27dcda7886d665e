"""Recipes take two steps on random data of the right shape.

Every run of the tests tries each form of a method, and each network, once; those with hundreds of
millions of parameters are marked long. The other recipes differ from these in numbers and widths,
or combine a method and a network that are tried separately. `make recipes` tries every recipe. The
networks for ImageNet are whole, but see images of 64x64: at 224x224 they would take ten times as
long.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from localprop import experiments
from localprop.data import Dataset
from localprop.experiments import Recipe
from localprop.experiments.blank_data import make_blank_dataset
from localprop.methods.names import format_method
from localprop.training.build import build, build_phase_schedule

ALL = [experiments.find(name) for name in experiments.names()]
TRY_ALL = "LOCALPROP_EVERY_RECIPE" in os.environ
# 33 auxiliary networks of four bottleneck blocks take gigabytes.
TOO_LARGE = {"resnet101_imagenet_auglocal_d4"}
# They take ten seconds and one to two gigabytes each.
LARGE = {"resnet34_imagenet_auglocal_d4", "vgg13_imagenet_auglocal_d4", "vgg13_imagenet_dgl_k4"}
LARGE |= {"vgg19_tinyimagenet_trgl_k4"}


def rank_by_cost(recipe: Recipe) -> tuple[bool, bool, bool]:
    """Rank local methods before end-to-end training, and small images before large ones.

    Thus each network is tried with a local method if it has one.
    """
    data = recipe.config.data
    return recipe.name.endswith("e2e"), "cifar" not in data, "imagenet" in data


def choose_recipes() -> list[str]:
    """The names of the recipes to try."""
    if TRY_ALL:
        return [recipe.name for recipe in ALL]
    candidates = [recipe for recipe in ALL if recipe.name not in TOO_LARGE]
    names: list[str] = []
    tried: set[str] = set()
    for recipe in sorted(candidates, key=rank_by_cost):
        # The expression without its numbers, and the network without its depth and options.
        expression = recipe.config.phases or format_method(recipe.config.method)
        method = re.sub(r"\w+=\([\d., ]*\)|[\d.]+", "", expression)
        network = re.sub(r"\d+|:\w+=.*", "", recipe.config.model)
        if not {method, network} <= tried:
            names.append(recipe.name)
        tried |= {method, network}
    return names


def make_batch(dataset: Dataset, samples: int) -> tuple[Tensor, Tensor]:
    """Random pixels, normalised, or random tokens, and random targets."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = dataset.make_zero_batch(samples)
    targets = torch.randint(dataset.num_classes, targets.shape, generator=generator)
    if dataset.normalization is None:
        return torch.randint(dataset.num_classes, inputs.shape, generator=generator), targets
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in dataset.normalization)
    return (torch.rand(inputs.shape, generator=generator) - mean) / std, targets


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long) if name in LARGE and not TRY_ALL else name
        for name in choose_recipes()
    ],
)
def test_two_steps(name: str) -> None:
    config = experiments.find(name).config
    config = replace(config, batch_size=4, image_size=64, device="cpu")
    dataset = make_blank_dataset(config)
    learner = build(config, dataset)
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    for phase_learner in build_phase_schedule(config, dataset, learner).learners.values():
        for _ in range(2):
            losses = phase_learner.step(make_batch(dataset, config.batch_size))
        assert all(torch.isfinite(torch.as_tensor(loss)) for loss in losses)
    assert [name for name, p in learner.named_parameters() if not torch.isfinite(p).all()] == []
    assert any(not torch.equal(before[name], p) for name, p in learner.named_parameters())
