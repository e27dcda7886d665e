"""All recipes: names, claims and sound settings; each is cut and wired."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from types import ModuleType

import pytest
import torch

import localprop as lp
from localprop import experiments
from localprop.experiments import Recipe
from localprop.methods.parse import parse_rule
from localprop.training.config import Config
from localprop.training.phases import parse_phases
from tests.helpers.recipes import cut_network, find_layers, find_network

ALL = [experiments.find(name) for name in experiments.names()]
WITHOUT_FIGURES = ("contsup", "interlocking", "pgl", "sgr", "windows", "solo", "lopt", "backlink")


def test_names_are_unique_and_readable() -> None:
    made = [recipe.name for family in experiments.FAMILIES for recipe in family.make_recipes()]
    assert len(made) == len({*made}) == len(ALL)
    assert [name for name in made if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", name)] == []


def test_names_are_found_by_a_word_in_either_case() -> None:
    assert experiments.names("RESNET32_CIFAR10_DGL") == experiments.names("resnet32_cifar10_dgl")


def test_an_unknown_name_is_bad_input() -> None:
    with pytest.raises(lp.BadInput, match="did you mean resnet32_cifar10_backlink_k16"):
        experiments.find("resnet32_cifar10_backlinks_k16")
    with pytest.raises(lp.BadInput, match="localprop recipes"):
        experiments.find("?")


def test_nothing_is_claimed_where_something_is_our_reading() -> None:
    readings = re.compile("our reading|not known|not stated|inferred")
    assert [recipe.name for recipe in ALL if readings.search(recipe.notes)] == []
    claims = {
        family.__name__.rpartition(".")[2]: [
            recipe.name
            for recipe in family.make_recipes()
            if recipe.claimed == recipe.published != ""
        ]
        for family in experiments.FAMILIES
    }
    assert [family for family in WITHOUT_FIGURES if claims[family]] == []
    assert "resnet32_cifar10_infopro_softmax_k16" in claims["infopro"]


def test_repr_evaluates_back() -> None:
    names = {"Recipe": Recipe, "Config": Config}
    assert [recipe.name for recipe in ALL if eval(repr(recipe), names) != recipe] == []


@pytest.mark.parametrize(
    "family", experiments.FAMILIES, ids=lambda family: family.__name__.rpartition(".")[2]
)
def test_every_recipe_is_sound(family: ModuleType) -> None:
    problems = {recipe.name: recipe.config.find_problems() for recipe in family.make_recipes()}
    assert {name: found for name, found in problems.items() if found} == {}


# --- networks and modules -------------------------------------------------------------------------

# Layers of each module, by hand from the papers' words.
MODULES = {
    "resnet32_cifar10_man_k16": [2] + [1] * 14,  # stem and first block, then 14 blocks
    "resnet110_cifar10_hpff_k55": [2] + [1] * 53,
    "resnet110_stl10_trgl_k16": [5, *[4] * 5, *[3] * 10],
    "resnet101_imagenet_infopro_k2": [1 + 3 + 1, 3 + 23 + 3],
    "resnet152_imagenet_infopro_k2": [1 + 3 + 6, 2 + 36 + 3],
    "resnext101_32x8d_imagenet_infopro_k2": [1 + 3 + 3, 1 + 23 + 3],
    "resnet152_imagenet_man_plus_k4": [1 + 3 + 7, 1 + 14, 12, 10 + 3],
    "resnet152_imagenet_dgl_k2": [26, 22 + 3],
    "vgg13_imagenet_dgl_k4": [3, 3, 3, 1],
    "vgg19_imagenet_dgl_k2": [8, 8],
    "resnet50_tinyimagenet_trgl_k4": [1 + 3, 4, 6, 3],
    "resnet34_cifar10_interlocking_wise2_k4": [1, 1, 1, 14],
    "resnet32_cifar10_gn_dgl_g2_k1": [17],
    "resnet32_cifar10_gn_dgl_g2_k1a": [16, 1],
    "resnet32_cifar10_gn_dgl_g2_k2": [8, 8, 1],
    "transformer_text_lopt_k2": [1 + 4, 4],  # the embedding and blocks
    "transformer_text_lopt_k4": [1 + 2, 2, 2, 2],
    "vgg8b_cifar10_predsim": [1] * 8,
    "vgg11b_cifar100_predsim": [1] * 11,
    "densenet_bc_100_12_cifar10_dgl_k8": [6] * 8,
}
# Of the network without heads.
PARAMETERS = {
    "resnet32_cifar10_greedy_k16": 466_906,
    "vgg8b_cifar10_predsim": 8_903_434,
    "resnet34_cifar10_interlocking_wise2_k4": 21_282_122,
}


@pytest.mark.parametrize("name", MODULES)
def test_layers_of_each_module(name: str) -> None:
    modules = cut_network(experiments.find(name).config).modules
    assert [len(module) for module in modules] == MODULES[name]


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_of_the_networks(name: str, count: int) -> None:
    model = find_layers(experiments.find(name).config).model
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def find_promised_modules(recipe: Recipe) -> int | None:
    """The number of modules that a recipe's name promises."""
    found = re.search(r"_k(\d+)", recipe.name)
    if found is None:
        return 1 if recipe.name.endswith("e2e") else None
    k = int(found[1])
    if "gn_dgl" in recipe.name and not recipe.name.endswith("_k1"):
        return k + 1  # the final classifier is a module of its own
    # The stem is a module for the paper, and belongs to the first module here.
    stem_counts = re.search("_(man|hpff|hpff_dgl)_k(16|55)", recipe.name)
    return k - 1 if stem_counts else k


def group_recipes(network: str, *, by_data: bool) -> Iterable[list[Recipe]]:
    """The recipes of a network, in groups of the same cuts and method, and of the same data."""
    groups = defaultdict[object, list[Recipe]](list)
    for recipe in ALL:
        c = recipe.config
        if find_network(c) == network:
            data = (c.data, c.image_size) if by_data else ()
            groups[c.model, c.cuts, c.modules, c.method, c.phases, data].append(recipe)
    return groups.values()


@pytest.mark.parametrize("network", sorted({find_network(recipe.config) for recipe in ALL}))
@pytest.mark.parametrize("by_data", [False, pytest.param(True, marks=pytest.mark.long)])
def test_every_recipe_of_a_network_is_wired(network: str, by_data: bool) -> None:
    """Into the modules that its name promises, with all of its heads, losses and encoders.

    All tensors are on the meta device: they have shapes, but no values. Data sets differ in classes
    and sizes of images alone, so one of them stands for all unless the test may take long.
    """
    for recipes in group_recipes(network, by_data=by_data):
        config = recipes[0].config
        partition = cut_network(config)
        phases = parse_phases(config.phases) if config.phases else []
        for method in [phase.method for phase in phases] or [config.method]:
            task = lp.Classification(config.label_smoothing)
            with torch.device("meta"):
                lp.wire(parse_rule(method), partition, task=task, normalization=lp.Normalization())
        for recipe in recipes:
            assert find_promised_modules(recipe) in (None, len(partition.modules)), recipe.name
