"""`localprop compare`: train methods side by side."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from localprop.cli.flags import (
    Subparsers,
    add_command,
    add_config,
    add_config_file,
    add_flag,
    add_log,
    add_rounds,
    collect_fields,
)
from localprop.cli.output import print_figures
from localprop.errors import RunStopped
from localprop.report.tasks import TASKS


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "compare",
        "train methods side by side: accuracy, memory, time and parameters of each",
    )
    parser.add_argument(
        "--task",
        choices=sorted(TASKS),
        default="images",
        help="image classification, or language modelling (default: images)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="expressions such as 'backlink(layers=2)', 'end_to_end() with recompute' or "
        "'LABEL: Rule(...)'; gaps are differences from the first (default: every method that can "
        "train the network)",
    )
    add_flag(parser, "--seeds", "runs of each method", accepts=int, default=3)
    add_rounds(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="directory for compare.json, with all figures, and for the runs, as train keeps them; "
        "the same command goes on with a comparison that was stopped",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the comparison in --out")
    add_log(parser, ", where each run has a folder of its own")
    add_config_file(parser)
    add_config(parser, skip=("method", "recompute", "offload", "phases"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    try:
        figures = _compare(args)
    except (KeyboardInterrupt, RunStopped) as error:
        if isinstance(error, RunStopped):
            print(error, file=sys.stderr)
        if args.out:
            without = ", without --overwrite," if args.overwrite else ""
            line = f"The runs so far are in {args.out}: the same command{without} goes on."
            print(line, file=sys.stderr)
        raise
    print_figures(args, figures)
    return 0


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    from localprop import commands
    from localprop.cli.progress import print_line, print_note, show_runs, show_waiting_until

    with show_waiting_until("preparing", show_runs) as show_progress:
        return commands.compare(
            args.methods,
            task=args.task,
            config=args.config,
            seeds=args.seeds,
            rounds=args.rounds,
            out=args.out,
            overwrite=args.overwrite,
            log=args.log,
            show_progress=show_progress,
            report=print_line,
            on_note=print_note,
            **collect_fields(args),
        )
