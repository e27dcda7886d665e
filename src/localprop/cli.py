"""The command line. Data goes to stdout, everything else to stderr; nothing heavy is imported before a command runs.

Exit codes: 0 success, 1 a run that failed, 2 bad input, 130 Ctrl-C. Each command is a pair of functions: `_add_<command>`
declares it, `_run_<command>` runs it and returns the exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from localprop.cli_flags import add_config, check_flags, given, reader
from localprop.errors import BadInput, RunFailed, StepFailed
from localprop.ranks.launch import rank, world
from localprop.training.config import Config

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `localprop`; those of the process if None.

    Returns:
        The exit code.

    Example:
        >>> main(["--version"])
        localprop 0.1.0
        0
    """
    try:
        args = _parser().parse_args(argv)
        if world() > 1 and args.run is not _run_train:
            raise BadInput("Only train runs on several ranks: start the other commands without torchrun.")
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except SystemExit as end:  # argparse's own: 0 after --help, 2 after bad words
        return end.code if isinstance(end.code, int) else 2
    except BadInput as error:
        seen_by = error.record["seen_by"] if error.record else 0  # what all ranks see, the first one tells
        if rank() == seen_by:
            _complain("localprop cannot use this input:", error.problems)
        return 2
    except (RunFailed, StepFailed) as error:
        record = error.record if isinstance(error, StepFailed) else None
        if record is None or record["seen_by"] == rank():
            _complain("The run failed:", [str(error)])
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except MemoryError:
        _complain("The run failed:", ["The machine has not enough memory for it."])
        return 1
    except BrokenPipeError:  # the reader of stdout has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="localprop", description="Train PyTorch networks by supervised local learning.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_compare(subparsers)
    _add_train(subparsers)
    _add_show(subparsers)
    _add_recipes(subparsers)
    _add_plan(subparsers)
    _add_bench(subparsers)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import localprop

        print(f"localprop {localprop.__version__}")
        parser.exit()


_SHAPE = reader((tuple[int, ...],))


# --- compare --------------------------------------------------------------------------------------------------------

_COMPARED = (
    "end_to_end()",
    "end_to_end() with recompute",
    "greedy(aux=Head(convs=0, linears=1))",
    "greedy()",
    "contsup()",
    "auglocal()",
    "backlink()",
    "interlocking(wise=2)",
    "BackLink + ContSup + AugLocal's heads: "
    "Rule(credit=BackwardLinks(), aux=SampledLayers(), context=ContextSupply(input=True, previous=1))",
)
# The methods that a network of tokens can be trained with as they are.
_COMPARED_ON_TEXT = (*_COMPARED[:4], "backlink()", "interlocking(wise=2)")
# Of each task the methods and values; chosen once, so that end-to-end has converged on the digits, and so that a language model
# takes two CPU cores some minutes. What is given replaces them.
_TASKS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "images": (_COMPARED, {"model": "resnet14", "epochs": 8, "batch_size": 64}),
    "lm": (
        _COMPARED_ON_TEXT,
        {
            "model": "transformer:width=64,blocks=3", "data": "text", "context": 64, "limit": 4000, "epochs": 3,
            "batch_size": 32, "optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.01, "lr_schedule": "cosine_above_zero",
            "warmup_epochs": 0,
        },
    ),
}  # fmt: skip


def _add_compare(subparsers: Subparsers) -> None:
    parser = _command(
        subparsers, "compare", "train methods side by side: accuracy, memory, time and parameters of each"
    )
    parser.add_argument(
        "--task",
        choices=sorted(_TASKS),
        default="images",
        help="image classification, or language modelling (default: images)",
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD",
        help="expressions such as 'backlink(layers=2)', 'end_to_end() with recompute' or 'LABEL: Rule(...)'; "
        "gaps refer to the first (default: every method that suits the task and the network)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=reader((int,)), default=3, metavar="N", help="runs of each method (default: 3)")
    _add_rounds(parser)
    parser.add_argument("--out", metavar="DIR", help="directory for compare.json, every figure of every run")
    parser.add_argument("--overwrite", action="store_true", help="replace the result in --out")
    add_config(parser, skip=("method", "recompute", "phases"))
    parser.set_defaults(run=_run_compare)


def _run_compare(args: argparse.Namespace) -> int:
    from localprop import cli_compare

    methods, usual = _TASKS[args.task]
    config = Config(**{**usual, **given(args)})
    check_flags(given(args), config)
    figures = cli_compare.run_compare(
        config, args.methods or methods, seeds=args.seeds, rounds=args.rounds, out=args.out, overwrite=args.overwrite,
        strict=args.methods is not None,
    )  # fmt: skip
    _print_figures(args, figures)
    return 0


# --- train ----------------------------------------------------------------------------------------------------------


def _add_train(subparsers: Subparsers) -> None:
    parser = _command(subparsers, "train", "train a network and measure it on test data")
    _add_recipe(parser)
    parser.add_argument("--out", metavar="DIR", help="directory for config, metrics, checkpoint and summary")
    used = parser.add_mutually_exclusive_group()
    used.add_argument("--resume", action="store_true", help="go on with the run in --out, with its config")
    used.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    add_config(parser)
    parser.set_defaults(run=_run_train)


def _run_train(args: argparse.Namespace) -> int:
    from localprop import cli_train
    from localprop.cli_recipes import beside, fields_of, published

    story = beside(args.recipe, given(args))
    chosen = given(args)
    if not args.resume:  # then all other fields are those of the run that is there
        chosen = fields_of(args.recipe, chosen)
        check_flags(given(args), Config(**chosen))
    recipe: dict[str, Any] = {key: story[key] for key in ("recipe", "replaced") if key in story}
    try:
        summary = cli_train.run(chosen, out=args.out, resume=args.resume, overwrite=args.overwrite, recipe=recipe)
    except KeyboardInterrupt:
        if args.out:
            print(f"Go on with: localprop train --out {shlex.quote(args.out)} --resume", file=sys.stderr)
        raise
    if rank() > 0:
        return 0
    told = {**beside(summary.get("recipe")), **summary}
    if args.json:
        print_json(told)
        return 0
    print("\n".join(filter(None, [cli_train.result_of(summary), published(told)])))
    return 0


# --- show -----------------------------------------------------------------------------------------------------------


def _add_show(subparsers: Subparsers) -> None:
    parser = _command(subparsers, "show", "print layers, credit table, schedule and costs, without training")
    _add_recipe(parser)
    add_config(parser)
    parser.set_defaults(run=_run_show)


def _run_show(args: argparse.Namespace) -> int:
    from localprop import cli_recipes

    _print_figures(args, cli_recipes.shown(args.recipe, given(args)))
    return 0


# --- recipes --------------------------------------------------------------------------------------------------------


def _add_recipes(subparsers: Subparsers) -> None:
    parser = _command(subparsers, "recipes", "list published experiments by name, with what their papers report")
    parser.add_argument("word", nargs="?", default="", metavar="WORD", help="only those whose names contain it")
    parser.set_defaults(run=_run_recipes)


def _run_recipes(args: argparse.Namespace) -> int:
    from localprop import cli_recipes

    _print_figures(args, cli_recipes.listing(args.word))
    return 0


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="a published experiment (see `localprop recipes`); flags replace its values",
    )


# --- plan -----------------------------------------------------------------------------------------------------------


def _add_plan(subparsers: Subparsers) -> None:
    parser = _command(
        subparsers, "plan", "what methods would give on a pipeline of devices, from seconds measured here"
    )
    whole = {"type": reader((int,)), "metavar": "N"}
    parser.add_argument("--model", default="resnet110", metavar="TEXT", help="as for train (default: resnet110)")
    parser.add_argument(
        "--input", type=_SHAPE, default=(3, 32, 32), dest="input_shape", metavar="C,H,W", help="default: 3,32,32"
    )
    parser.add_argument("--classes", default=10, **whole, help="outputs of the network (default: 10)")
    parser.add_argument("--batch", default=128, **whole, help="samples that a pipeline takes in a step (default: 128)")
    parser.add_argument("--modules", **whole, help="local modules (default: one per rank)")
    parser.add_argument("--ranks", default=4, **whole, help="devices of a pipeline (default: 4)")
    parser.add_argument("--replicas", default=1, **whole, help="pipelines, each with its own batch (default: 1)")
    parser.add_argument("--microbatches", default=4, **whole, help="parts of a pipeline's batch (default: 4)")
    parser.add_argument(
        "--link", default="25GB/s", metavar="SPEED", help="such as 25GB/s or 400Gbit/s (default: 25GB/s)"
    )
    parser.add_argument("--latency", default="10us", metavar="TIME", help="such as 10us or 0.1ms (default: 10us)")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD",
        help="expressions, as for compare, beside end-to-end by GPipe, 1F1B and zero-bubble (default: every method that fits)",
    )  # fmt: skip
    parser.add_argument(
        "--cuts", default="seconds", metavar="BY", help="modules of equal seconds or of equal layers (default: seconds)"
    )
    parser.add_argument("--rounds", default=5, **whole, help="of the measurement (default: 5)")
    parser.add_argument("--device", default="auto", metavar="TEXT", help="default: the accelerator if there is one")
    parser.add_argument("--out", metavar="FILE", help="Gantt chart of who waits for whom: .html, .png or .svg")
    parser.set_defaults(run=_run_plan)


def _run_plan(args: argparse.Namespace) -> int:
    from localprop import cli_plan
    from localprop.report.plan import Setting

    chosen = {field.name: getattr(args, field.name) for field in fields(Setting)}
    methods = args.methods or _COMPARED[1:]
    _print_figures(args, cli_plan.run_plan(Setting(**chosen), methods, strict=args.methods is not None, out=args.out))
    return 0


# --- bench ----------------------------------------------------------------------------------------------------------

_MEASURED = {
    "memory": (
        *_COMPARED[:2],
        "greedy()",
        "backlink(layers=1)",
        "backlink(layers=3)",
        "contsup()",
        "interlocking(wise=2)",
    ),
    "speed": ("end_to_end()", "greedy(aux=Head(convs=0, linears=1))"),
}
_SETTINGS = {"memory": ("resnet110", 0.0), "speed": ("resnet32", 0.9)}


def _add_bench(subparsers: Subparsers) -> None:
    parser = _command(
        subparsers, "bench", "measure the engine: memory against its prediction, or time against a plain loop"
    )
    parser.add_argument("what", choices=sorted(_MEASURED), help="what to measure")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="expressions, as for compare")
    parser.add_argument("--model", metavar="TEXT", help="default: resnet110 for memory, resnet32 for speed")
    whole = {"type": reader((int,)), "metavar": "N"}
    parser.add_argument("--modules", default=16, **whole, help="local modules (default: 16)")
    parser.add_argument("--batch-size", default=128, **whole, help="images per batch (default: 128)")
    parser.add_argument("--input", type=_SHAPE, default=(3, 32, 32), metavar="C,H,W", help="default: 3,32,32")
    parser.add_argument(
        "--momentum", type=reader((float,)), metavar="X", help="of SGD; default: 0 for memory, 0.9 for speed"
    )
    parser.add_argument("--device", default="auto", metavar="TEXT", help="default: the accelerator if there is one")
    _add_rounds(parser)
    parser.set_defaults(run=_run_bench)


def _run_bench(args: argparse.Namespace) -> int:
    from localprop import cli_compare
    from localprop.report.bench import Setting

    model, momentum = _SETTINGS[args.what]
    setting = Setting(
        model=args.model or model,
        modules=args.modules,
        batch_size=args.batch_size,
        input_shape=args.input,
        momentum=momentum if args.momentum is None else args.momentum,
        device=args.device,
    )
    figures = cli_compare.run_bench(args.what, setting, args.methods or _MEASURED[args.what], args.rounds)
    _print_figures(args, figures)
    return 0


# --- what commands share --------------------------------------------------------------------------------------------


def _add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rounds", type=reader((int,)), default=15, metavar="N", help="interleaved rounds of the timing (default: 15)"
    )


def _print_figures(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    table = figures.pop("table")
    if args.json:
        print_json(figures)
    else:
        print(table)


def _command(subparsers: Subparsers, name: str, purpose: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.", allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def print_json(value: object) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))


def _complain(title: str, problems: Iterable[str]) -> None:
    bullets = [f"- {problem}".replace("\n", "\n  ") for problem in problems]
    print("\n".join([title, *bullets]), file=sys.stderr)
