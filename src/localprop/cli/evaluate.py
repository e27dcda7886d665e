"""`localprop evaluate`: figures of the deployed network of a run."""

from __future__ import annotations

import argparse
from dataclasses import fields

from localprop.cli.flags import Subparsers, add_command, add_config, collect_fields
from localprop.cli.output import print_figures
from localprop.training.config import OF_EVALUATION, Config


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "evaluate",
        "measure the deployed network of a run on test data, and each module's early exit",
    )
    parser.add_argument("directory", metavar="RUN", help="the directory of a run of train --out")
    others = [field.name for field in fields(Config) if field.name not in OF_EVALUATION]
    add_config(parser, skip=others)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from localprop import commands
    from localprop.cli.progress import show_waiting

    with show_waiting("evaluating"):
        figures = commands.evaluate(args.directory, **collect_fields(args))
    print_figures(args, figures)
    return 0
