"""`localprop check`: where a model can be cut, and what would be refused, before any training."""

from __future__ import annotations

import argparse
from typing import Any

from localprop.cli.flags import Subparsers, add_command, add_flag, add_input_shape
from localprop.errors import BadInput


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers, "check", "print where a model can be cut, and what would be refused"
    )
    parser.add_argument(
        "source",
        metavar="MODEL",
        help="a function without arguments that returns (model, batch), such as my_code:make, or a "
        "model as for train",
    )
    add_input_shape(parser)
    add_flag(parser, "--classes", "outputs of the network", accepts=int, default=10)
    add_flag(parser, "--batch", "samples of a batch", accepts=int, default=8)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command: 0 if the usual heads can train the model in several modules, else 1."""
    from localprop.cli.output import print_json
    from localprop.cli.progress import show_waiting
    from localprop.model_check import check
    from localprop.writing.terminal import print_text

    with show_waiting("looking at the model"):
        found = check(*_make(args))
    if args.json:
        print_json(found.as_json())
    else:
        print_text(str(found))
    return 0 if found.ok else 1


def _make(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model and the batch: what a function of the user's returns, or a model and zeros.

    Raises:
        BadInput: there is no such function or model, it fails, or it returns something else.
    """
    from torch import nn

    from localprop.errors import check as check_values
    from localprop.methods.names import find_required
    from localprop.models.create import names_function
    from localprop.models.sample import create_without_data, make_zero_batch
    from localprop.report.value_checks import find_range_problems
    from localprop.user_code import describe_error, import_named

    source, shape = args.source, args.input_shape
    check_values(find_range_problems(batch=(args.batch, 1), classes=(args.classes, 1)))
    if names_function(source) and "," not in source:
        make: Any = import_named(*source.split(":"))
        try:
            needs_nothing = callable(make) and not find_required(make)
            made = make() if needs_nothing else None
        except Exception as error:  # code of the user's may raise anything
            raise BadInput(
                f"{source} cannot be called ({describe_error(error)}): it must be a function "
                "without arguments that returns (model, batch), or one that returns a model."
            ) from error
        if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
            return made[0], made[1]
        if made is not None and not isinstance(made, nn.Module):
            raise BadInput(
                f"{source} returned a {type(made).__name__}, but must return (model, batch), or a "
                "model."
            )
    model = create_without_data(source, args.classes, shape)
    return model, make_zero_batch(model, shape, args.batch)
