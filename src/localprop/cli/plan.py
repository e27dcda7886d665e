"""`localprop plan`: will a training step fit into so many bytes, and what makes it fit?"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from localprop.cli.flags import Subparsers, add_command, add_flag, add_input_shape
from localprop.cli.output import print_figures


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "plan",
        "predict the memory of a training step in many ways, and choose the fastest that fits",
    )
    add_flag(parser, "--model", "a model, as for train", default="resnet110")
    add_input_shape(parser)
    add_flag(parser, "--classes", "outputs of the network", accepts=int, default=10)
    add_flag(parser, "--batch", "samples of a batch", accepts=int, default=128)
    add_flag(parser, "--budget", "bytes, such as 8GB or 7.5GiB (default: only the table)")
    add_flag(parser, "--optimizer", "as for train", default="sgd")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="expressions, as for compare, beside end-to-end training (default: greedy, backlink, "
        "interlocking)",
    )
    add_flag(parser, "--precision", "as for train", default="fp32")
    add_flag(
        parser,
        "--device",
        "what the plan is for, such as cuda, which need not be here: with a margin for its "
        "allocator, and a way that keeps activations in the host's memory",
        default="cpu",
    )
    add_flag(
        parser,
        "--ranks",
        "processes that share the network, each with that budget",
        accepts=int,
        default=1,
    )
    parser.add_argument(
        "--split-batch-norm",
        action="store_true",
        help="split batches though the model has BatchNorm, which then sees less of them",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="time steps of the ways in the table, in turns with the plain loop",
    )
    parser.add_argument(
        "--out",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="files for the plan: .json (for train --plan), .png, .svg or .html (chart and table)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from localprop.cli.progress import show_waiting

    # Nothing else runs while steps are timed.
    with nullcontext() if args.measure else show_waiting("planning"):
        figures = describe_plan(args)
    print_figures(args, figures)
    return 0


def describe_plan(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of a plan, and its table as text.

    Raises:
        BadInput: the model, the sizes, the budget or a method has problems.
    """
    import torch
    from torch.utils._pytree import tree_map

    from localprop.errors import check, collect_problems
    from localprop.models import create_model
    from localprop.models.sample import create_without_data, make_zero_batch
    from localprop.planning.plan import FILES
    from localprop.planning.search import METHODS, plan
    from localprop.planning.sizes import read_size
    from localprop.report.value_checks import find_range_problems
    from localprop.training.config import CHOICES, Config
    from localprop.training.optimizers import make_optimizer_factory
    from localprop.writing.charts import check_path

    problems: list[str] = []
    if args.optimizer not in CHOICES["optimizer"]:
        choices = ", ".join(CHOICES["optimizer"])
        problems.append(f"optimizer={args.optimizer!r}: choose one of {choices}.")
    counts = {"batch": args.batch, "classes": args.classes, "ranks": args.ranks}
    problems += find_range_problems(**{name: (count, 1) for name, count in counts.items()})
    with collect_problems(problems):
        read_size(1 if args.budget is None else args.budget)
    for path in args.out:
        with collect_problems(problems):
            check_path(path, FILES)
    with collect_problems(problems):
        model = create_without_data(args.model, args.classes, args.input_shape)
    check(problems)
    batch = make_zero_batch(model, args.input_shape, args.batch)
    if args.measure:  # steps run, and need data
        model = create_model(args.model, args.classes, args.input_shape)
        batch = tree_map(lambda tensor: torch.zeros_like(tensor, device="cpu"), batch)
    found = plan(
        model,
        batch,
        budget=args.budget,
        optimizer=make_optimizer_factory(Config(optimizer=args.optimizer)),
        methods=args.methods or METHODS,
        split_batch_norm=args.split_batch_norm,
        precision=args.precision,
        device=args.device,
        ranks=args.ranks,
        measure=args.measure,
    )
    assert found.made_for is not None
    made_for = found.made_for._replace(model=args.model, classes=args.classes)
    found = replace(found, made_for=made_for)
    for path in args.out:
        found.save(path)
    return {**found.as_json(), "table": str(found)}
