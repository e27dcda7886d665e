"""`localprop export`: the deployed network of a run as files."""

from __future__ import annotations

import argparse

from localprop.cli.flags import Subparsers, add_command
from localprop.cli.output import print_figures


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers, "export", "write the deployed network of a run to files, without its heads"
    )
    parser.add_argument("directory", metavar="RUN", help="the directory of a run of train --out")
    parser.add_argument(
        "--out",
        nargs="+",
        required=True,
        metavar="FILE",
        help="files: .pt (a state_dict), .safetensors, .pt2 (torch.export; plain PyTorch runs it) "
        "or .onnx",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from localprop import commands
    from localprop.cli.progress import show_waiting

    with show_waiting("exporting"):
        figures = commands.export(args.directory, *args.out)
    print_figures(args, figures)
    return 0
