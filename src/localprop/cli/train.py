"""`localprop train`: train a network and measure it on test data."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from localprop import experiments
from localprop.cli.flags import (
    Subparsers,
    add_command,
    add_config,
    add_config_file,
    add_flag,
    add_log,
    collect_fields,
)
from localprop.cli.output import print_json
from localprop.cli.recipe_argument import add_recipe, format_published
from localprop.errors import RunStopped
from localprop.ranks.launch import get_rank
from localprop.writing.terminal import print_text


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(subparsers, "train", "train a network and measure it on test data")
    add_recipe(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="directory for config, metrics, checkpoint and summary"
    )
    add_flag(
        parser,
        "--plan",
        "a plan.json of `localprop plan --out`, whose best way is taken; flags may not contradict",
        metavar="FILE",
    )
    add_config_file(parser)
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="continue the run in --out, with its config"
    )
    existing.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    add_flag(
        parser,
        "--keep",
        "how many of the newest checkpoints to keep in --out; the best one is kept besides",
        accepts=int,
        default=2,
    )
    add_log(parser)
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from localprop.training.run import format_result

    try:
        summary = _train(args)
    except (KeyboardInterrupt, RunStopped) as error:
        if isinstance(error, RunStopped):
            print_text(str(error), sys.stderr)
        if args.out:
            command = f"localprop train --out {shlex.quote(args.out)} --resume"
            print_text(f"Continue with: {command}", sys.stderr)
        raise
    if get_rank() > 0:  # rank 0 prints the result
        return 0
    result = {**experiments.recipe_info(summary.get("recipe")), **summary}
    if args.json:
        print_json(result)
    else:
        print_text("\n".join(filter(None, [format_result(summary), format_published(result)])))
    return 0


def _train(args: argparse.Namespace) -> dict[str, Any]:
    from localprop import commands
    from localprop.cli.progress import print_note, show_epochs, show_waiting_until

    with show_waiting_until("preparing", show_epochs) as show_progress:
        return commands.train(
            args.recipe,
            plan=args.plan,
            config=args.config,
            out=args.out,
            resume=args.resume,
            overwrite=args.overwrite,
            keep=args.keep,
            log=args.log,
            show_progress=show_progress,
            on_note=print_note,
            **collect_fields(args),
        )
