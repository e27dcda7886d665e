"""Published experiments by name: their run, the figure of the paper, and what is unknown.

>>> from localprop import recipes
>>> recipes.find("resnet32_cifar10_dgl_k16").published.partition(",")[0]
'test error 16.21 +- 0.36 %'
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache

from localprop.errors import BadInput
from localprop.recipes import (
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
    trgl,
    windows,
)
from localprop.recipes.recipe import Recipe

__all__ = ["Recipe", "find", "names"]

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


@cache
def _load_recipes() -> dict[str, Recipe]:
    return {recipe.name: recipe for family in FAMILIES for recipe in family.make_recipes()}
