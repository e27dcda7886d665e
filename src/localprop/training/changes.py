"""What has changed since a run began, so that it would not go on as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from localprop.errors import BadInput
from localprop.methods.names import format_method
from localprop.methods.parse import parse_rule
from localprop.rule.rule import Rule
from localprop.training.config import MAY_DIFFER
from localprop.training.state_file import StateFile


def find_changes(
    file: StateFile, config: Mapping[str, Any], data: Mapping[str, Any]
) -> Iterator[str]:
    """Find in what config and data differ from those of a run's checkpoint, one sentence each.

    Args:
        file: the checkpoint.
        config: the fields to go on with. Those in `MAY_DIFFER` may have changed.
        data: the fingerprint of the data set to go on with.
    """
    run = file.about["run"]
    for name, value in config.items():
        saved = run["config"].get(name)
        if name not in MAY_DIFFER and not are_same(name, value, saved):
            yield (
                f"{name}={value!r} in config.json, but {file.path} was trained with {saved!r}: put "
                "it back, or start a new run."
            )
    for name, value in data.items():
        saved = run["data"].get(name)
        if value != saved:
            yield (
                f"The data have changed since {file.path} was written: {name} was "
                f"{_shorten(saved)} and is {_shorten(value)}: put the data back, or "
                "start a new run."
            )


def are_same(name: str, given: object, stored: object) -> bool:
    """Whether two values of a field mean the same; a method may be written in several ways.

    A list may be a tuple that was in JSON.

    Example:
        >>> are_same("method", "backlink", "backlink(layers=1)")
        True
    """
    if name == "method" and isinstance(given, str | Rule) and isinstance(stored, str):
        try:
            one, other = parse_rule(given), parse_rule(stored)
            return replace(one, reference="") == replace(other, reference="")
        except BadInput:  # a rule with parts that text cannot make
            return isinstance(given, Rule) and format_method(given) == stored
    values = [[*each] if isinstance(each, tuple) else each for each in (given, stored)]
    return bool(values[0] == values[1])


def describe_other_torch(file: StateFile) -> list[str]:
    """Say that another torch wrote a checkpoint; empty if it is the same."""
    then = file.versions["torch"]
    if then == torch.__version__:
        return []
    return [
        f"The checkpoint is of torch {then}, and this is {torch.__version__}: the last bits may "
        "differ from those of an undisturbed run."
    ]


def _shorten(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{text[:77]}..." if len(text) > 80 else text
