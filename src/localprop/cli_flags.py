"""Flags of the command line from the fields of :class:`Config`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from inspect import cleandoc
from typing import Any, get_args

from localprop.errors import check
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


def check_flags(flags: Mapping[str, Any], config: Config) -> None:
    """Refuse flags without effect, and with them what is wrong with the config's values.

    Args:
        flags: the fields that were given.
        config: the run that they are part of.

    Raises:
        BadInput: there are such flags.
    """
    idle = list(idle_problems(flags, config))
    check([*idle, *config.problems()] if idle else [])


def idle_problems(flags: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Flags that were given and change nothing in the run, one sentence each.

    Args:
        flags: the fields that were given.
        config: the run that they are part of; what is wrong with its values is not told here.

    Example:
        >>> list(idle_problems({"momentum": 0.9}, Config(optimizer="adam")))
        ['--momentum has no effect with --optimizer adam: leave it out.']
    """
    config = config.sound()
    if config.optimizer in ("adam", "adamw"):
        told = config.momentum != Config.momentum  # by the config itself
        for name in ("nesterov",) if told else ("momentum", "nesterov"):
            if name in flags:
                yield f"--{name} has no effect with --optimizer {config.optimizer}: leave it out."
    from localprop.data.sources import augment_of, name_problems
    from localprop.training.config import options_of

    if list(name_problems(config.data, options_of(config))):  # told when it is loaded
        return
    for name, why in _idle_data_flags(config):
        if name in flags:
            yield f"--{name.replace('_', '-')} has no effect {why}: leave it out."
    if not {"padding", "crop_pad", "cutout"} & {*flags}:
        return
    augment = augment_of(config.data, options_of(config))
    for name, kind, used in (
        ("padding", "crop", augment.pad),
        ("crop_pad", "crop", augment.pad),
        ("cutout", "cutout", augment.cutout),
    ):
        if name in flags and not used:
            flag = f"--{name.replace('_', '-')}"
            yield f"{flag} has no effect without the augmentation {kind!r}: leave it out, or add it to --augment."


def _idle_data_flags(config: Config) -> Iterator[tuple[str, str]]:
    """Fields that change nothing with the data set or the schedule of a config, and why."""
    from localprop.data.options import is_folder, is_text

    if is_text(config.data):
        yield "validation", "on text, of which a tenth is held out"
    else:
        yield "context", "on images"
    if not is_folder(config.data):
        yield from ((name, "without a folder of images") for name in ("image_size", "workers"))
    if config.data in ("digits", "text"):
        yield from ((name, f"on {config.data}, which needs no files") for name in ("root", "download"))
    if config.lr_schedule != "multistep":
        yield "lr_factor", f"with --lr-schedule {config.lr_schedule}"


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
