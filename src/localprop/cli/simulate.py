"""`localprop simulate`: predict how methods do on a pipeline of devices."""

from __future__ import annotations

import argparse
from dataclasses import fields

from localprop.cli.flags import Subparsers, add_command, add_flag, add_input_shape
from localprop.cli.output import print_figures
from localprop.report.tasks import METHODS


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command. Its flags are the fields of `PipelineSetting`."""
    parser = add_command(
        subparsers,
        "simulate",
        "predict step times of methods on a pipeline of devices, from times measured here",
    )
    _add_network_flags(parser)
    _add_pipeline_flags(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="expressions, as for compare; end-to-end by GPipe, 1F1B and zero-bubble is always "
        "simulated, too (default: every method that can train the network)",
    )
    add_flag(parser, "--rounds", "rounds of the measurement", accepts=int, default=5)
    add_flag(parser, "--device", "the device to measure on, as for train", default="auto")
    parser.add_argument(
        "--out", metavar="FILE", help="Gantt chart of the ranks' work: .html, .png or .svg"
    )
    parser.set_defaults(run=run)


def _add_network_flags(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--model", "a model, as for train", default="resnet110")
    add_input_shape(parser)
    add_flag(parser, "--classes", "outputs of the network", accepts=int, default=10)
    add_flag(
        parser,
        "--cuts",
        "cut modules of equal seconds or of equal layers",
        default="seconds",
        metavar="BY",
    )
    add_flag(parser, "--modules", "local modules (default: one per rank)", accepts=int)


def _add_pipeline_flags(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--batch", "samples per step of a pipeline", accepts=int, default=128)
    add_flag(parser, "--ranks", "devices of a pipeline", accepts=int, default=4)
    add_flag(
        parser, "--replicas", "pipelines, each with a batch of its own", accepts=int, default=1
    )
    add_flag(
        parser, "--microbatches", "micro-batches of a pipeline's batch", accepts=int, default=4
    )
    add_flag(
        parser,
        "--link",
        "speed between two ranks, such as 25GB/s or 400Gbit/s",
        default="25GB/s",
        metavar="SPEED",
    )
    add_flag(
        parser,
        "--latency",
        "latency of a message, such as 10us or 0.1ms",
        default="10us",
        metavar="TIME",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from localprop.cli.progress import print_line
    from localprop.report.pipeline_setting import PipelineSetting
    from localprop.report.simulate import run_simulation

    chosen = {field.name: getattr(args, field.name) for field in fields(PipelineSetting)}
    figures = run_simulation(
        PipelineSetting(**chosen),
        args.methods or METHODS[1:],
        strict=args.methods is not None,
        out=args.out,
        progress=print_line,
    )
    print_figures(args, figures)
    return 0
