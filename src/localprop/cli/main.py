"""The command `localprop`. Results go to stdout, everything else to stderr.

Exit codes: 0 success, 1 a run that failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from localprop.cli import (
    analyse,
    bench,
    check,
    compare,
    evaluate,
    export,
    plan,
    recipes,
    report,
    show,
    simulate,
    train,
)
from localprop.cli.flags import refuse_unknown
from localprop.errors import BadInput, RunFailed, RunStopped, StepFailed, escape
from localprop.ranks.launch import get_rank, get_world_size
from localprop.writing.terminal import print_text

# In the order of the help. Each has `add_parser`, which declares its flags, and `run`, which runs
# it and returns the exit code.
_COMMANDS = (
    compare, report, train, evaluate, analyse, export, show, check, plan, recipes, simulate, bench,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `localprop`; those of this process if None.

    Returns:
        The exit code.

    Example:
        >>> main(["--version"])
        localprop 0.1.0
        0
    """
    try:
        return _run_command(argv)
    except SystemExit as end:  # argparse: 0 after --help, 2 after words that it does not know
        return end.code if isinstance(end.code, int) else 2
    except BadInput as error:
        # A problem without a record is one that all ranks found: rank 0 prints it.
        if get_rank() == (error.record["seen_by"] if error.record else 0):
            _print_problems("localprop cannot use this input:", error.problems)
        return 2
    except (RunFailed, StepFailed) as error:
        record = error.record if isinstance(error, StepFailed) else None
        if record is None or record["seen_by"] == get_rank():
            _print_problems("The run failed:", [str(error)])
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except RunStopped as error:
        return 128 + error.signal
    except MemoryError:
        _print_problems("The run failed:", ["Out of memory."])
        return 1
    except BrokenPipeError:  # the reader of stdout has gone, as in `| head`
        # Python would print a traceback when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run_command(argv: Sequence[str] | None) -> int:
    # `--method my_module:my_method()` finds a module where the user stands, as `python -m` does. At
    # the end of the path, a file there cannot stand in for a module that is installed.
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.append("")
    args, unknown = _build_parser().parse_known_args(argv)
    refuse_unknown(args, unknown)
    if get_world_size() > 1 and args.run is not train.run:
        raise BadInput(
            "Only train runs on several ranks: start the other commands without torchrun."
        )
    code: int = args.run(args)
    sys.stdout.flush()  # inside the try of main, where a BrokenPipeError is caught
    return code


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="localprop",
        description="Train PyTorch networks by supervised local learning.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(subparsers)
    return parser


class _Parser(argparse.ArgumentParser):
    """Its messages repeat words of the command line, which a terminal must not obey."""

    def error(self, message: str) -> NoReturn:
        super().error(escape(message))


class _PrintVersion(argparse.Action):
    """Prints the version. The import waits until someone asks for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import localprop

        print(f"localprop {localprop.__version__}")
        parser.exit()


def _print_problems(title: str, problems: Iterable[str]) -> None:
    bullets = [f"- {problem}".replace("\n", "\n  ") for problem in problems]
    print_text("\n".join([title, *bullets]), sys.stderr)
