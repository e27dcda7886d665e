"""The argument RECIPE of `train` and `show`: the fields of a recipe, and what its paper reports."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from localprop import recipes
from localprop.ranks.launch import get_rank


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Declare the argument RECIPE."""
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="a published experiment (see `localprop recipes`); flags override its values",
    )


def fields_of(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a run: those given, and for the others the values of a recipe if one is named.

    Values of the recipe that do not fit a smaller number of epochs change with it. A message on
    stderr names them.

    Raises:
        BadInput: there is no recipe of this name. Lists close matches.

    Example:
        >>> fields_of("transformer_text_solo_k2", {"epochs": 2})["epochs"]
        2
    """
    if not name:
        return dict(given)
    recipe = recipes.find(name)
    if get_rank() == 0:
        for field, value in recipe.scaled_to_epochs(given).items():
            before = getattr(recipe.config, field)
            print(
                f"{field}={before!r} does not fit epochs={given['epochs']}: {field}={value!r} "
                "instead.",
                file=sys.stderr,
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
    recipe = recipes.find(name)
    return {
        "recipe": recipe.name,
        "paper": recipe.paper,
        "published": recipe.published,
        "claimed": bool(recipe.claimed and not recipe.readings),
        "notes": recipe.notes,
        "readings": recipe.readings,
        "replaced": recipe.find_replaced_fields(given),
    }


def format_published(info: Mapping[str, Any]) -> str:
    """Format the published figure of `recipe_info` as one line; empty if there is none.

    Example:
        >>> info = {"published": "test error 5 %", "claimed": True, "replaced": ["epochs"]}
        >>> format_published(info)
        'published, for the recipe as it is: test error 5 %; this run replaces epochs'
        >>> format_published({"published": "test error 5 %", "claimed": False, "replaced": []})
        'published, not claimed for this recipe, which is in part our reading: test error 5 %'
    """
    if not info.get("published"):
        return ""
    claim = "not claimed for this recipe, which is in part our reading"
    if info["claimed"]:
        claim = "for the recipe as it is"
    line = f"published, {claim}: {info['published']}"
    if info["replaced"]:
        line += f"; this run replaces {', '.join(info['replaced'])}"
    return line
