"""The types of a config's fields: what they accept, and how a message names them."""

from __future__ import annotations

import types
from typing import Any, get_args

# How error messages name the types of fields.
_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    types.NoneType: "None",
    tuple[int, ...]: "whole numbers with commas",
    tuple[float, ...]: "numbers with commas",
}


def list_alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a type hint allows.

    Example:
        >>> list_alternatives(int | None)
        (<class 'int'>, <class 'NoneType'>)
    """
    return get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def has_type(value: object, accepted: tuple[Any, ...]) -> bool:
    """Whether a value has one of the types. True is no whole number, but 1 is a number.

    Example:
        >>> has_type((1, 2), (tuple[int, ...],)), has_type(True, (int,)), has_type(1, (float,))
        (True, False, True)
    """
    for accepted_type in accepted:
        if isinstance(accepted_type, types.GenericAlias):  # tuple[int, ...]
            item_type = get_args(accepted_type)[:1]
            if isinstance(value, tuple) and all(has_type(item, item_type) for item in value):
                return True
        elif type(value) is accepted_type or (accepted_type is float and type(value) is int):
            return True
    return False


def describe_mistyped(name: str, value: object, accepted: tuple[Any, ...]) -> str:
    """Say that a field has a value of a type that it does not accept.

    Example:
        >>> describe_mistyped("epochs", "many", (int,))
        "epochs='many' is a str, but must be a whole number: correct it."
    """
    wanted = " or ".join(_TYPE_NAMES.get(each, "a Rule") for each in accepted)
    return f"{name}={value!r} is a {type(value).__name__}, but must be {wanted}: correct it."


def format_flag(field: str) -> str:
    """The flag of a field.

    Example:
        >>> format_flag("batch_size")
        '--batch-size'
    """
    return "--" + field.replace("_", "-")
