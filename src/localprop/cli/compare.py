"""`localprop compare`: train methods side by side."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

from localprop.cli.default_methods import METHODS, TEXT_METHODS
from localprop.cli.flags import (
    Subparsers,
    add_command,
    add_config,
    add_flag,
    add_rounds,
    collect_fields,
)
from localprop.cli.output import print_figures
from localprop.training.config import Config


class _Task(NamedTuple):
    """The methods of a task, and its values for fields that are not given."""

    methods: tuple[str, ...]
    fields: dict[str, Any]


# The values were chosen once: end-to-end converges on the digits, and a language model takes some
# minutes on two CPU cores.
_TASKS = {
    "images": _Task(METHODS, {"model": "resnet14", "epochs": 8, "batch_size": 64}),
    "lm": _Task(
        TEXT_METHODS,
        {
            "model": "transformer:width=64,blocks=3",
            "data": "text",
            "context": 64,
            "limit": 4000,
            "epochs": 3,
            "batch_size": 32,
            "optimizer": "adamw",
            "lr": 3e-3,
            "weight_decay": 0.01,
            "lr_schedule": "cosine_above_zero",
            "warmup_epochs": 0,
        },
    ),
}


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "compare",
        "train methods side by side: accuracy, memory, time and parameters of each",
    )
    parser.add_argument(
        "--task",
        choices=sorted(_TASKS),
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
        "--out", metavar="DIR", help="directory for compare.json, with all figures of all runs"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the result in --out")
    add_config(parser, skip=("method", "recompute", "phases"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from localprop.cli.idle_flags import check_flags
    from localprop.cli.progress import print_line, print_note, show_runs
    from localprop.report.compare import run_compare

    task, given = _TASKS[args.task], collect_fields(args)
    config = Config(**{**task.fields, **given})
    check_flags(given, config)
    figures = run_compare(
        config,
        args.methods or task.methods,
        seeds=args.seeds,
        rounds=args.rounds,
        out=args.out,
        overwrite=args.overwrite,
        strict=args.methods is not None,
        show_progress=show_runs,
        report=print_line,
        on_note=print_note,
    )
    print_figures(args, figures)
    return 0
