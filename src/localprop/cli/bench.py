"""`localprop bench`: memory against its prediction, or time against a plain loop."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from localprop.cli.flags import (
    Subparsers,
    add_command,
    add_flag,
    add_input_shape,
    add_rounds,
)
from localprop.cli.output import print_figures
from localprop.report.tasks import METHODS


class _Benchmark(NamedTuple):
    """The defaults of a benchmark."""

    model: str
    momentum: float
    methods: tuple[str, ...]


_BENCHMARKS = {
    "memory": _Benchmark(
        "resnet110",
        0.0,
        (
            *METHODS[:2],  # end-to-end, without and with recomputation
            "end_to_end() with recompute=modules",
            "greedy()",
            "greedy() with recompute",
            "backlink(layers=1)",
            "backlink(layers=3)",
            "contsup()",
            "interlocking(wise=2)",
        ),
    ),
    "speed": _Benchmark("resnet32", 0.9, ("end_to_end()", "greedy(aux=Head(convs=0, linears=1))")),
}


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "bench",
        "measure the engine: memory against its prediction, or time against a plain loop",
    )
    parser.add_argument("quantity", choices=sorted(_BENCHMARKS), help="the quantity to measure")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="expressions, as for compare"
    )
    add_flag(
        parser,
        "--model",
        "a model, as for train (default: resnet110 for memory, resnet32 for speed)",
    )
    add_flag(parser, "--modules", "local modules", accepts=int, default=16)
    add_flag(parser, "--batch-size", "images per batch", accepts=int, default=128)
    add_input_shape(parser)
    add_flag(
        parser,
        "--momentum",
        "momentum of SGD (default: 0 for memory, 0.9 for speed)",
        accepts=float,
    )
    add_flag(parser, "--weight-gradients", "once or each, as for train", default="once")
    add_flag(parser, "--device", "a device, as for train", default="auto")
    add_flag(
        parser,
        "--against",
        "for speed: a file whose make_steps(make_network, batch) returns steps of other "
        "implementations, by name, which are timed in the same rounds",
        metavar="FILE.py",
    )
    add_rounds(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from localprop.cli.progress import print_line
    from localprop.report.bench import BenchSetting, run_bench

    benchmark = _BENCHMARKS[args.quantity]
    setting = BenchSetting(
        model=args.model or benchmark.model,
        modules=args.modules,
        batch_size=args.batch_size,
        input_shape=args.input_shape,
        momentum=benchmark.momentum if args.momentum is None else args.momentum,
        weight_gradients=args.weight_gradients,
        device=args.device,
    )
    methods = args.methods or benchmark.methods
    figures = run_bench(
        args.quantity, setting, methods, args.rounds, progress=print_line, against=args.against
    )
    print_figures(args, figures)
    return 0
