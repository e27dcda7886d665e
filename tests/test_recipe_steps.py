"""Recipes take two steps on random data of the right shape.

One of each form of a method and one of each network does so in all test runs. What these leave out differs in numbers, in
widths, or in a pair of method and network of which each is tried; `make recipes` tries every recipe, which takes long.
ImageNet's networks are whole, but see images of 64x64: at 224x224 they take ten times as long.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from localprop import recipes
from localprop.data import Dataset
from localprop.recipes import Recipe
from localprop.recipes.standin import blank
from localprop.training.config import build, course_of

ALL = [recipes.find(name) for name in recipes.names()]
EVERY = "LOCALPROP_EVERY_RECIPE" in os.environ
TOO_LARGE = {"resnet101_imagenet_auglocal_d4"}  # 33 auxiliary networks of four bottleneck blocks: gigabytes


def cost(recipe: Recipe) -> tuple[bool, bool, bool]:
    """Local methods before end-to-end training, so that a network is tried with one of them; small images first."""
    data = recipe.config.data
    return recipe.name.endswith("e2e"), "cifar" not in data, "imagenet" in data


def tried() -> list[str]:
    if EVERY:
        return [recipe.name for recipe in ALL]
    names, seen = [], set[str]()
    for recipe in sorted((r for r in ALL if r.name not in TOO_LARGE), key=cost):
        form = re.sub(r"\w+=\([\d., ]*\)|[\d.]+", "", recipe.config.phases or recipe.config.method)
        kind = re.sub(r"\d+|:\w+=.*", "", recipe.config.model)  # without its depth and options
        if not {form, kind} <= seen:
            names.append(recipe.name)
        seen |= {form, kind}
    return names


def batch_of(dataset: Dataset, count: int) -> tuple[Tensor, Tensor]:
    """Random pixels, normalised, or random tokens, and random targets."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = dataset.sample(count)
    targets = torch.randint(dataset.num_classes, targets.shape, generator=generator)
    if dataset.moments is None:
        return torch.randint(dataset.num_classes, inputs.shape, generator=generator), targets
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in dataset.moments)
    return (torch.rand(inputs.shape, generator=generator) - mean) / std, targets


@pytest.mark.parametrize("name", tried())
def test_two_steps(name: str) -> None:
    config = recipes.find(name).config
    config = replace(config, batch_size=4, image_size=64, device="cpu")
    dataset = blank(config)
    learner = build(config, dataset)
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    for each in course_of(config, dataset, learner).learners.values():
        for _ in range(2):
            losses = each.step(batch_of(dataset, config.batch_size))
        assert all(torch.isfinite(torch.as_tensor(loss)) for loss in losses)
    assert [name for name, p in learner.named_parameters() if not torch.isfinite(p).all()] == []
    assert any(not torch.equal(before[name], p) for name, p in learner.named_parameters())
