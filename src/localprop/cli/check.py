"""`localprop check`: where a model can be cut, and what would be refused, before any training."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

from localprop.cli.flags import Subparsers, add_command
from localprop.errors import BadInput


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers, "check", "print where a model can be cut, and what would be refused"
    )
    parser.add_argument(
        "source",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that returns (model, batch), such as my_code:make",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command: 0 if the usual heads can train the model in several modules, else 1."""
    from localprop.cli.output import print_json
    from localprop.model_check import check

    found = check(*_make(args.source))
    if args.json:
        print_json(found.as_json())
    else:
        print(found)
    return 0 if found.ok else 1


def _make(source: str) -> tuple[Any, Any]:
    """The model and the batch that a function of the user's returns.

    Raises:
        BadInput: there is no such function, it fails, or it returns something else.
    """
    from torch import nn

    module, colon, name = source.partition(":")
    if not module or not colon or not name:
        raise BadInput(f"{source!r} is no MODULE:FUNCTION: write for example my_code:make.")
    try:
        made = getattr(import_module(module), name)()
    except Exception as error:  # code of the user's may raise anything
        lines = str(error).strip().splitlines() or ["no message"]
        raise BadInput(
            f"{source} cannot be called ({type(error).__name__}: {lines[0]}): it must be a "
            "function without arguments, in a module that Python finds from here."
        ) from error
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
        raise BadInput(
            f"{source} returned a {type(made).__name__}, but must return (model, batch)."
        )
    return made[0], made[1]
