"""Published experiments by name: their run, the figure of the paper, and what is unknown.

>>> from localprop import experiments
>>> experiments.find("resnet32_cifar10_dgl_k16").published.partition(",")[0]
'test error 16.21 +- 0.36 %'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import Any

from localprop.errors import BadInput
from localprop.experiments import (
    auglocal,
    backlink,
    contsup,
    dgl,
    gn_dgl,
    hpff,
    infopro,
    interlocking,
    lopt,
    man,
    pgl,
    predsim,
    sgr,
    solo,
    stages,
    trgl,
    windows,
)
from localprop.experiments.recipe import Recipe
from localprop.training.config import Config

__all__ = ["Recipe", "fields_of", "find", "names", "recipe_info"]

# In the order of a listing.
FAMILIES = (
    infopro,
    backlink,
    contsup,
    auglocal,
    interlocking,
    predsim,
    dgl,
    trgl,
    hpff,
    man,
    gn_dgl,
    pgl,
    sgr,
    windows,
    solo,
    lopt,
    stages,
)


def find(name: str) -> Recipe:
    """The recipe with a name.

    Raises:
        BadInput: if there is none; the message suggests close matches.

    Example:
        >>> find("resnet32_cifar10_backlink_k16").config.cuts
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
    """
    recipes = _load_recipes()
    if name in recipes:
        return recipes[name]
    close = get_close_matches(name, recipes, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(close)}?" if close else "look it up with `localprop recipes`."
    )
    raise BadInput(f"There is no recipe {name!r}: {hint}")


def names(word: str = "") -> list[str]:
    """The names that contain a word, family by family. Case does not matter; "" matches all.

    Example:
        >>> names("vgg19_imagenet")
        ['vgg19_imagenet_dgl_baseline_e2e', 'vgg19_imagenet_dgl_k2', 'vgg19_imagenet_dgl_k4']
    """
    return [name for name in _load_recipes() if word.lower() in name]


def fields_of(
    name: str | None,
    given: Mapping[str, Any],
    report: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """The fields of a run: those given, and for the others the values of a recipe if one is named.

    Values of the recipe that do not fit a smaller number of epochs change with it.

    Args:
        name: of the recipe, or None.
        given: fields of `Config`.
        report: called with a sentence for each value that changed.

    Raises:
        BadInput: there is no recipe of this name. Lists close matches.

    Example:
        >>> fields_of("transformer_text_solo_k2", {"epochs": 2})["epochs"]
        2
    """
    return _override(find(name), given, report) if name else dict(given)


def override(
    values: Mapping[str, Any],
    given: Mapping[str, Any],
    report: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Fields of a run that exists, some of them replaced.

    As with a recipe, a given field drops what excludes it, and a smaller number of epochs changes
    what no longer fits.

    Args:
        values: fields of `Config`, for instance those of a config.json.
        given: fields that replace them.
        report: called with a sentence for each value that changed.

    Example:
        >>> override({"modules": 4, "lr": 0.2}, {"cuts": (1, 3)})
        {'lr': 0.2, 'cuts': (1, 3)}
    """
    return _override(Recipe("", Config(**values), ""), given, report)


def _override(
    recipe: Recipe, given: Mapping[str, Any], report: Callable[[str], object]
) -> dict[str, Any]:
    for field, value in recipe.scaled_to_epochs(given).items():
        before = getattr(recipe.config, field)
        report(
            f"{field}={before!r} does not fit epochs={given['epochs']}: {field}={value!r} instead."
        )
    return recipe.with_overrides(given)


def recipe_info(
    name: str | None, given: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """The entries about a recipe beside the result of a run; none if no recipe is named.

    Returns:
        "recipe", its name; "paper"; "published", the figure that the paper reports; "claimed",
        whether the recipe claims it; "notes"; "readings"; "replaced", the fields that the given
        ones override.

    Raises:
        BadInput: there is no recipe of this name. Lists close matches.

    Example:
        >>> recipe_info("resnet110_cifar10_auglocal_d6")["published"]
        'test accuracy 93.96 %, as quoted by others; best or last epoch is not stated'
    """
    if name is None:
        return {}
    recipe = find(name)
    return {
        "recipe": recipe.name,
        "paper": recipe.paper,
        "published": recipe.published,
        "claimed": bool(recipe.claimed and not recipe.readings),
        "notes": recipe.notes,
        "readings": recipe.readings,
        "replaced": recipe.find_replaced_fields(given),
    }


@cache
def _load_recipes() -> dict[str, Recipe]:
    return {recipe.name: recipe for family in FAMILIES for recipe in family.make_recipes()}
