"""Flags of the command line from the fields of :class:`Config`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields
from inspect import cleandoc
from typing import Any, get_args

from localprop.training.config import Config, accepted_types

# What a flag's text is tried as, and what stands for it in the help.
_READ = {int: "N", float: "X", tuple[int, ...]: "N,N", tuple[float, ...]: "X,X"}


def add_config(parser: argparse.ArgumentParser, skip: Iterable[str] = ()) -> None:
    """A flag for each field of :class:`Config` but those to skip; what is not given is absent from the arguments.

    Values stay as they can be read, so that :meth:`Config.problems` lists all that are wrong, not argparse the first.
    """
    group = parser.add_argument_group("the run")
    helps = _field_helps()
    for field in fields(Config):
        if field.name in skip:
            continue
        flag, kinds = "--" + field.name.replace("_", "-"), accepted_types()[field.name]
        default = "" if field.default in (None, (), MISSING) else f" (default: {field.default})"
        options: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": (helps[field.name] + default).replace("%", "%%"),
        }
        if kinds == (bool,):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            group.add_argument(flag, type=reader(kinds), metavar=_metavar(kinds), **options)


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of :class:`Config` that were given as flags."""
    return {field.name: getattr(args, field.name) for field in fields(Config) if hasattr(args, field.name)}


def reader(kinds: tuple[Any, ...]) -> Any:
    """A function from the text of a flag to a value of one of the types; a text that is none stays a text.

    Example:
        >>> reader((tuple[int, ...],))("1,2"), reader((int,))("many")
        ((1, 2), 'many')
    """
    return lambda text: next(
        (value for kind in _READ if kind in kinds and (value := _read(kind, text)) is not None), text
    )


def _read(kind: Any, text: str) -> object:
    try:
        return tuple(map(get_args(kind)[0], text.split(","))) if get_args(kind) else kind(text)
    except ValueError:
        return None


def _metavar(kinds: tuple[Any, ...]) -> str:
    return next((word for kind, word in _READ.items() if kind in kinds), "TEXT")


def _field_helps() -> dict[str, str]:
    """The attributes' descriptions in the docstring of :class:`Config`, which are the flags' help."""
    section = cleandoc(Config.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    helps = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE))
    return {field.name: " ".join(helps.get(field.name, "").split()).rstrip(".") for field in fields(Config)}
