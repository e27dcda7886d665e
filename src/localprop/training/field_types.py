"""The fields of a config in messages and on the command line."""

from __future__ import annotations

from typing import Any

from localprop.arguments import describe_type
from localprop.errors import show


def describe_mistyped(name: str, value: object, accepted: tuple[Any, ...]) -> str:
    """Say that a field has a value of a type that it does not accept.

    Example:
        >>> describe_mistyped("epochs", "many", (int,))
        "epochs='many' is a str, but must be a whole number: correct it."
    """
    wanted = " or ".join(map(describe_type, accepted))
    return f"{name}={show(value)} is a {type(value).__name__}, but must be {wanted}: correct it."


def format_flag(field: str) -> str:
    """The flag of a field.

    Example:
        >>> format_flag("batch_size")
        '--batch-size'
    """
    return "--" + field.replace("_", "-")
