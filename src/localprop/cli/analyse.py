"""`localprop analyse`: what the modules of runs have learned."""

from __future__ import annotations

import argparse
from dataclasses import fields

from localprop.cli.flags import Subparsers, add_command, add_config, add_flag, collect_fields
from localprop.cli.output import print_figures
from localprop.training.config import OF_EVALUATION, Config


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "analyse",
        "look at what the modules of runs have learned: linear probes, similarity to end-to-end "
        "training (CKA), agreement of gradients",
    )
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RUN",
        help="directories of train --out and compare --out; each run gets an analysis.json, which "
        "report shows",
    )
    add_flag(parser, "--rows", "rows of each split at most", accepts=int, default=10_000)
    of_data = [name for name in OF_EVALUATION if name != "data"]
    add_config(parser, skip=[f.name for f in fields(Config) if f.name not in of_data])
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from localprop.cli.progress import print_line
    from localprop.report.run_analysis import analyse

    figures = analyse(args.results, rows=args.rows, on_progress=print_line, **collect_fields(args))
    print_figures(args, figures)
    return 0
