"""Options in a model's name, `resnet32:widen=2`: read as data and never run as code."""

import ast
import warnings
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any, NamedTuple

from localprop.errors import BadInput, check

# What a model is built for: given by the data, never by the name.
GIVEN = ("num_classes", "in_chans", "input_shape", "in_features", "vocabulary", "context")
FORM = "write NAME:option=value,option=value (only hidden widths go without a name, mlp:512,512)"


class Written(NamedTuple):
    """What stands behind a model's name.

    Attributes:
        values: those without a name, as in mlp:512,512.
        options: those with one.
    """

    values: tuple[Any, ...]
    options: dict[str, Any]


def written(name: str, text: str) -> Written:
    """Read the options of a name. A value is a literal of Python; a bare word is a text.

    Args:
        name: the whole name, for messages.
        text: its options.

    Raises:
        BadInput: for anything that is no such list, and an option that is given twice.

    Example:
        >>> written("resnet32:widen=2,shortcut=pad", "widen=2,shortcut=pad")
        Written(values=(), options={'widen': 2, 'shortcut': 'pad'})
    """
    call = _parsed(name, text)
    names = [str(keyword.arg) for keyword in call.keywords]
    check(f"{name!r} gives {again} twice: remove one." for again in sorted({n for n in names if names.count(n) > 1}))
    values = tuple(_literal(name, node) for node in call.args)
    return Written(values, {str(keyword.arg): _literal(name, keyword.value) for keyword in call.keywords})


def _parsed(name: str, text: str) -> ast.Call:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about code that is never run
            call = ast.parse(f"_({text})", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise BadInput(f"The options of {name!r} cannot be read ({reason}): {FORM}.") from error
    # "1)(2" is a call of a call, "**2" a keyword without a name.
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and all(k.arg for k in call.keywords)):
        raise BadInput(f"The options of {name!r} cannot be read: {FORM}.")
    return call


def _literal(name: str, node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        seen = ast.unparse(node)[:60]
        raise BadInput(
            f"{seen} in {name!r} is no value: numbers, texts, True, False and (1, 2) can stand there."
        ) from error


def options_of(build: Callable[..., Any]) -> dict[str, Parameter]:
    """The arguments of a function that a name may give.

    Example:
        >>> def build(num_classes: int = 10, widen: int = 1) -> None: ...
        >>> list(options_of(build))
        ['widen']
    """
    return {name: parameter for name, parameter in signature(build).parameters.items() if name not in GIVEN}


def option_problems(name: str, build: Callable[..., Any], options: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the options that a name gives to a function."""
    known = options_of(build)
    listed = ", ".join(f"{option}={parameter.default!r}" for option, parameter in known.items())
    has = f"It has {listed}." if known else "It has none."
    for option, value in options.items():
        if option not in known:
            close = get_close_matches(option, known, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            yield f"{name} has no option {option!r}: {meant}{has}"
        elif not _fits(value, known[option].default):
            yield f"{name}:{option}={value!r} does not fit: give something like {option}={known[option].default!r}."


def _fits(value: object, default: object) -> bool:
    """Whether a value is of the default's kind; a tuple holds whole numbers."""
    if isinstance(default, float):
        return type(value) in (int, float)
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and all(type(item) is int for item in value)
    return type(value) is type(default)
