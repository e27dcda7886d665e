"""`localprop recipes`: list published experiments by name."""

from __future__ import annotations

import argparse
from typing import Any

from localprop import experiments
from localprop.cli.flags import Subparsers, add_command
from localprop.cli.output import print_figures


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers, "recipes", "list published experiments by name, with what their papers report"
    )
    parser.add_argument(
        "word",
        nargs="?",
        default="",
        metavar="WORD",
        help="list only recipes whose names contain it",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    print_figures(args, list_recipes(args.word))
    return 0


def list_recipes(word: str) -> dict[str, Any]:
    """List the recipes whose names contain a word, as rows and as a table for printing.

    Example:
        >>> print(list_recipes("resnet110_svhn_e2e")["table"])
        resnet110_svhn_e2e  test error 3.07 +- 0.23 %, mean and standard deviation of 5 runs; best
        or last epoch is not stated
    """
    found = [experiments.find(name) for name in experiments.names(word)]
    width = max((len(recipe.name) for recipe in found), default=0)
    lines = [f"{recipe.name:{width}}  {recipe.claimed}".rstrip() for recipe in found]
    return {
        "recipes": [experiments.recipe_info(recipe.name) for recipe in found],
        "table": "\n".join(lines) or f"No recipe's name contains {word!r}.",
    }
