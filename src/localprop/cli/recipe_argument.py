"""The argument RECIPE of `train` and `show`, and the line that says what its paper reports."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Declare the argument RECIPE."""
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="a published experiment (see `localprop recipes`); flags override its values",
    )


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
