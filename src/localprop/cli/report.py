"""`localprop report`: a page of results."""

from __future__ import annotations

import argparse

from localprop.cli.flags import Subparsers, add_command, add_flag
from localprop.cli.output import print_figures


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "report",
        "write a page of results: the front of accuracy and costs, curves, credit, what is alive",
    )
    parser.add_argument(
        "results",
        nargs="+",
        metavar="DIR",
        help="directories of compare --out and train --out, or files of compare --json",
    )
    add_flag(
        parser,
        "--out",
        "the page; CSV, Markdown, LaTeX and PNG are written beside it",
        default="report.html",
        metavar="FILE.html",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from localprop import commands
    from localprop.cli.progress import print_line, show_waiting

    with show_waiting("writing the page"):
        figures = commands.write_report(args.results, args.out, on_progress=print_line)
    print_figures(args, figures)
    return 0
