"""What the command line does with recipes: the command `recipes`, and the RECIPE of `train` and `show`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from localprop import recipes
from localprop.cli_flags import check_flags
from localprop.ranks.launch import rank
from localprop.training.config import Config


def fields_of(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a run: those of a recipe, if one is named, with what is given in their place.

    Raises:
        BadInput: an unknown recipe, with close matches.

    Example:
        >>> fields_of("transformer_text_solo_k2", {"epochs": 2})["epochs"]
        2
    """
    if not name:
        return dict(given)
    recipe = recipes.find(name)
    for field, value in recipe.fitted(given).items() if rank() == 0 else ():
        was = getattr(recipe.config, field)
        print(f"{field}={was!r} does not fit epochs={given['epochs']}: {field}={value!r} instead.", file=sys.stderr)
    return recipe.varied(given)


def beside(name: str | None, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What stands beside the result of a run: its recipe, what the paper reports, if it is claimed, and what was replaced.

    Raises:
        BadInput: an unknown recipe, with close matches.

    Example:
        >>> beside("resnet110_cifar10_auglocal_d6")["published"]
        'test accuracy 93.96 %, as quoted by others; best or last epoch is not stated'
    """
    if name is None:
        return {}
    recipe = recipes.find(name)
    told: dict[str, Any] = {"recipe": recipe.name, "paper": recipe.paper, "published": recipe.published}
    told |= {"claimed": bool(recipe.claim and not recipe.readings), "notes": recipe.notes, "readings": recipe.readings}
    return {**told, "replaced": recipe.replaced(given)}


def published(found: Mapping[str, Any]) -> str:
    """The line below the result of a run of a recipe, from :func:`beside`; empty if nothing was published.

    Example:
        >>> published({"published": "test error 5 %", "claimed": True, "replaced": ["epochs"]})
        'published, for the recipe as it is: test error 5 %; this run replaces epochs'
        >>> published({"published": "test error 5 %", "claimed": False, "replaced": []})
        'published, not claimed for this recipe, which is in part our reading: test error 5 %'
    """
    if not found.get("published"):
        return ""
    replaced = f"; this run replaces {', '.join(found['replaced'])}" if found["replaced"] else ""
    whose = (
        "for the recipe as it is" if found["claimed"] else "not claimed for this recipe, which is in part our reading"
    )
    return f"published, {whose}: {found['published']}{replaced}"


def listing(word: str) -> dict[str, Any]:
    """The recipes whose names contain a word: as rows, and as the table that is printed.

    Example:
        >>> print(listing("resnet110_svhn_e2e")["table"])
        resnet110_svhn_e2e  test error 3.07 +- 0.23 %, mean and standard deviation of 5 runs; best or last epoch is not stated
    """
    found = [recipes.find(name) for name in recipes.names(word)]
    width = max((len(recipe.name) for recipe in found), default=0)
    lines = [f"{recipe.name:{width}}  {recipe.claim}".rstrip() for recipe in found]
    rows = [beside(recipe.name) for recipe in found]
    return {"recipes": rows, "table": "\n".join(lines) or f"No recipe's name contains {word!r}."}


def shown(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What `show` tells of a run: a recipe's own words, and the learner's; of a recipe the data need not be there.

    Raises:
        BadInput: an unknown recipe, flags without effect, and what the values, the data and the model are refused for.

    Example:
        >>> shown(None, {"model": "mlp"})["modules"]
        [[0], [1], [2]]
    """
    from localprop.recipes.standin import blank
    from localprop.training.config import load_data, prepared

    config = Config(**fields_of(name, given))
    check_flags(given, config)
    learner = prepared(config, blank if name else load_data)[1]
    memory = learner.memory()
    story = [recipes.find(name).story()] if name else []
    return {
        **beside(name, given),
        "config": asdict(config),
        "rule": repr(learner.rule),
        "layers": learner.partition.layers.names,
        "modules": [list(module) for module in learner.partition.modules],
        "credit": str(learner.wiring.table).splitlines(),
        "schedule": str(learner.schedule),
        "peak_bytes": memory.peak_bytes,
        "resting_bytes": memory.resting_bytes,
        "module_bytes": [memory.module_bytes[m] for m in sorted(memory.module_bytes)],
        "table": "\n\n".join([*story, learner.explain()]),
    }
