"""Published experiments by name: what to run, what the paper reports, what is not known about it.

>>> from localprop import recipes
>>> recipes.find("resnet32_cifar10_dgl_k16").published
'test error 16.21 +- 0.36 %, mean and standard deviation of 5 runs; best or last epoch is not stated'
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache

from localprop.errors import BadInput
from localprop.recipes import (
    abstracts,
    auglocal,
    backlink,
    contsup,
    dgl,
    groups,
    infopro,
    interlocking,
    language,
    predsim,
    trgl,
    windows,
)
from localprop.recipes.recipe import Recipe

__all__ = ["Recipe", "find", "names"]

FAMILIES = (
    infopro,
    backlink,
    contsup,
    auglocal,
    interlocking,
    predsim,
    dgl,
    trgl,
    windows,
    groups,
    abstracts,
    language,
)


def find(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        BadInput: a name that is none, with close matches.

    Example:
        >>> find("resnet32_cifar10_backlink_k16").config.cuts
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
    """
    if name in _all():
        return _all()[name]
    close = get_close_matches(name, _all(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "look it up with `localprop recipes`."
    raise BadInput(f"There is no recipe {name!r}: {hint}")


def names(word: str = "") -> list[str]:
    """The names that contain a word in capitals or not, family by family; all of them if it is empty.

    Example:
        >>> names("vgg19_imagenet")
        ['vgg19_imagenet_dgl_baseline_e2e', 'vgg19_imagenet_dgl_k2', 'vgg19_imagenet_dgl_k4']
    """
    return [name for name in _all() if word.lower() in name]


@cache
def _all() -> dict[str, Recipe]:
    return {recipe.name: recipe for family in FAMILIES for recipe in family.recipes()}
