"""Declare flags: those of a single command, and one for each field of `Config`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from inspect import cleandoc
from typing import Any, TypeAlias, get_args

from localprop.training.config import Config, find_accepted_types
from localprop.training.field_types import format_flag

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

# The types that the text of a flag is read as, in this order, and how the help names them.
_METAVARS = {int: "N", float: "X", tuple[int, ...]: "N,N", tuple[float, ...]: "X,X"}


def add_command(subparsers: Subparsers, name: str, purpose: str) -> argparse.ArgumentParser:
    """Declare a command, with the flag --json that all commands have."""
    description = f"{purpose[0].upper()}{purpose[1:]}."
    parser = subparsers.add_parser(name, help=purpose, description=description, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(parser=parser)
    return parser


def refuse_unknown(args: argparse.Namespace, words: Sequence[str]) -> None:
    """End with the usage of the command and close flags, if there are words that it does not know.

    Raises:
        SystemExit: with 2.
    """
    if not words:
        return
    parser: argparse.ArgumentParser = args.parser
    known = re.findall(r"--[\w-]+", parser.format_usage())
    hints = []
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and (close := get_close_matches(flag, known, n=1)):
            hints.append(f"instead of {flag}, did you mean {close[0]}?")
    parser.error("; ".join([f"unrecognized arguments: {' '.join(words)}", *hints]))


def add_config_file(parser: argparse.ArgumentParser) -> None:
    """Declare the flag --config."""
    add_flag(
        parser,
        "--config",
        "fields of the run from a .toml file, or from the config.json of a run, which repeats it; "
        "flags win over the file",
        metavar="FILE",
    )


def add_log(parser: argparse.ArgumentParser, of_runs: str = "") -> None:
    """Declare the flag --log, which may be repeated."""
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="KIND:PATH",
        help="write each epoch to csv:FILE, or to tensorboard:FOLDER, which needs pip install "
        f"'localprop[tensorboard]'{of_runs}; may be repeated",
    )


def add_flag(
    parser: argparse.ArgumentParser,
    flag: str,
    help: str,
    *,
    accepts: Any = str,
    default: Any = None,
    metavar: str | None = None,
) -> None:
    """Declare a flag with one value.

    Args:
        parser: the parser of the command.
        flag: the flag, such as "--modules".
        help: its help, to which the default is added.
        accepts: the type of the value, as for `make_reader`.
        default: the value if the flag is not given.
        metavar: how the help names the value.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_flag(parser, "--modules", "local modules", accepts=int, default=16)
        >>> parser.parse_args([]).modules
        16
    """
    if default is not None:
        help += f" (default: {default})"
    parser.add_argument(
        flag,
        type=make_reader((accepts,)),
        default=default,
        metavar=metavar or _metavar_of((accepts,)),
        help=help,
    )


def add_config(parser: argparse.ArgumentParser, skip: Iterable[str] = ()) -> None:
    """Declare a flag for each field of `Config`, except those to skip.

    A flag that is not given is absent from the arguments. A value that cannot be read stays a text,
    so that `Config.find_problems` lists all wrong values instead of argparse the first.
    """
    group = parser.add_argument_group("the run")
    helps = _read_field_helps()
    accepted = find_accepted_types()
    for field in fields(Config):
        if field.name in skip:
            continue
        help = helps[field.name]
        if field.default not in (None, (), MISSING):
            help += f" (default: {field.default})"
        options: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": help.replace("%", "%%"),
        }
        types, flag = accepted[field.name], format_flag(field.name)
        if {*types} <= {bool, type(None)}:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
            continue
        options |= {"type": make_reader(types), "metavar": _metavar_of(types)}
        if bool not in types:
            group.add_argument(flag, **options)
            continue
        # --recompute, --recompute 2 and --no-recompute
        group.add_argument(flag, nargs="?", const=True, **options | {"metavar": "CHOICE"})
        off = options | {"help": f"no {flag}", "action": "store_false", "dest": field.name}
        del off["type"], off["metavar"]
        group.add_argument(flag.replace("--", "--no-"), **off)


def add_rounds(parser: argparse.ArgumentParser) -> None:
    """Declare the flag --rounds of commands that measure times."""
    add_flag(parser, "--rounds", "interleaved rounds of the timing", accepts=int, default=15)


def add_input_shape(parser: argparse.ArgumentParser) -> None:
    """Declare the flag --input, the argument `input_shape`."""
    parser.add_argument(
        "--input",
        type=make_reader((tuple[int, ...],)),
        default=(3, 32, 32),
        dest="input_shape",
        metavar="C,H,W",
        help="shape of an image (default: 3,32,32)",
    )


def collect_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Collect the fields of `Config` that were given as flags."""
    return {
        field.name: getattr(args, field.name)
        for field in fields(Config)
        if hasattr(args, field.name)
    }


def make_reader(types: tuple[Any, ...]) -> Callable[[str], Any]:
    """Make a function that reads the text of a flag as one of the types.

    A text that is none of them stays a text.

    Example:
        >>> make_reader((tuple[int, ...],))("1,2"), make_reader((int,))("many")
        ((1, 2), 'many')
    """

    def read(text: str) -> Any:
        for candidate in _METAVARS:
            if candidate in types:
                try:
                    return _read_as(candidate, text)
                except ValueError:
                    continue
        return text

    return read


def _read_as(type_: Any, text: str) -> Any:
    item_types = get_args(type_)  # (int, ...) of tuple[int, ...]
    if item_types:
        return tuple(map(item_types[0], text.split(",")))
    return type_(text)


def _metavar_of(types: tuple[Any, ...]) -> str:
    return next((metavar for known, metavar in _METAVARS.items() if known in types), "TEXT")


def _read_field_helps() -> dict[str, str]:
    """The help of each field: its description in the docstring of `Config`."""
    section = cleandoc(Config.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    helps = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE))
    return {
        field.name: " ".join(helps.get(field.name, "").split()).rstrip(".")
        for field in fields(Config)
    }
