"""The arguments of public functions: each has the type that its annotation says, or is refused."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache, wraps
from inspect import Parameter, signature
from itertools import islice
from numbers import Integral, Rational, Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from localprop.errors import check, show

_Checked = TypeVar("_Checked", bound=Callable[..., Any])

_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    types.NoneType: "None",
    tuple[int, ...]: "whole numbers with commas",
    tuple[float, ...]: "numbers with commas",
}
_ANY_NUMBER = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_LOOKED_AT = 1000  # items of a long sequence


def check_arguments(function: _Checked) -> _Checked:
    """Check what a function, or the constructor of a class, is given; for use as a decorator.

    Annotations that name no type here, such as those of protocols, accept everything.

    Raises:
        BadInput: by what it decorates; with all arguments of a wrong type.

    Example:
        >>> @check_arguments
        ... def repeat(word: str, times: int = 2) -> str:
        ...     return word * times
        >>> repeat("a", times="b")
        Traceback (most recent call last):
        localprop.errors.BadInput: repeat(times='b'): times must be a whole number.
    """
    if isinstance(function, type):
        function.__init__ = _check(function.__init__, function.__name__)  # type: ignore[misc]
        return function
    checked: _Checked = _check(function, function.__name__)
    return checked


def _check(function: Any, name: str) -> Any:
    expected = signature(function)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            given = expected.bind(*args, **kwargs).arguments
        except TypeError:  # too many arguments, or too few: Python itself says it best
            return function(*args, **kwargs)
        check(find_mistyped(name, given, _read_hints(function)))
        return function(*args, **kwargs)

    return checked


def find_mistyped(name: str, given: Mapping[str, Any], hints: Mapping[str, Any]) -> Iterator[str]:
    """Find the arguments of a wrong type, one sentence each.

    Args:
        name: of what takes them.
        given: the arguments.
        hints: the types of those that have one.
    """
    for argument, value in given.items():
        if argument in hints and not has_type(value, hints[argument]):
            wanted = describe_type(hints[argument])
            null = ", without null characters" * (isinstance(value, str) and "\0" in value)
            yield f"{name}({argument}={show(value)}): {argument} must be {wanted}{null}."


@cache
def _read_hints(function: Any) -> dict[str, Any]:
    """The types of a function's arguments; without those that only a type checker knows."""
    hints = {}
    for parameter in signature(function).parameters.values():
        hint = parameter.annotation
        if hint is parameter.empty or parameter.kind in _ANY_NUMBER:
            continue
        try:
            known = eval(hint, function.__globals__) if isinstance(hint, str) else hint
        except (NameError, TypeError):  # imported for a type checker alone
            continue
        hints[parameter.name] = known
    return hints


def list_alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a type hint allows.

    Example:
        >>> list_alternatives(int | None)
        (<class 'int'>, <class 'NoneType'>)
    """
    return get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)


def has_type(value: object, hint: Any) -> bool:
    """Whether a value has the type of a hint.

    True is no whole number, but 1 is a number, and numbers of numpy are numbers. A whole number has
    at most 64 bits. A list may stand for a tuple.

    Example:
        >>> has_type((1, 2), tuple[int, ...]), has_type(True, int), has_type(1, float | None)
        (True, False, True)
    """
    return any(_has_type(value, each) for each in list_alternatives(hint))


def _has_type(value: object, hint: Any) -> bool:
    origin, items = get_origin(hint), get_args(hint)
    if hint is int:
        return _is_whole(value)
    if hint is float:
        return _is_number(value)
    if hint is str:
        return isinstance(value, str) and "\0" not in value  # no path holds one
    if origin is tuple:
        return isinstance(value, tuple | list) and _holds(value, items)
    if origin in (Sequence, Collection):
        needed = "__getitem__" if origin is Sequence else "__len__"
        return hasattr(value, needed) and _holds(value, (*items[:1], ...))
    if origin is Literal:
        return isinstance(value, str)  # the function itself says which words there are
    if origin is Callable:
        return callable(value)
    kind = hint if origin is None else origin
    if kind is None:
        return value is None
    try:
        return not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # a protocol
        return True


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) < 2**63


def _is_number(value: object) -> bool:
    """Whether torch computes with it: with all real numbers but Python's fractions."""
    if isinstance(value, Integral):
        return _is_whole(value)
    return isinstance(value, Real) and not isinstance(value, Rational)


def _holds(value: Any, items: tuple[Any, ...]) -> bool:
    """Whether something holds such items: one kind and `...`, or a kind for each place."""
    if isinstance(value, str | bytes | Mapping):
        return False
    try:
        count, found = len(value), list(islice(iter(value), _LOOKED_AT))
    except TypeError:  # an array of no dimension
        return False
    if items[-1:] == (...,):
        return all(has_type(item, items[0]) for item in found)
    return count == len(items) and all(map(has_type, found, items))


def describe_type(hint: Any) -> str:
    """Name what a hint allows.

    Example:
        >>> describe_type(int | None)
        'a whole number or None'
    """
    return " or ".join(map(_name, list_alternatives(hint)))


def _name(hint: Any) -> str:
    if hint in _NAMES:
        return _NAMES[hint]
    origin, items = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, items))
    if origin is Callable:
        return "a function"
    if origin is tuple and items[-1] is not ...:
        return f"{len(items)} values: {', '.join(map(describe_type, items))}"
    if origin in (tuple, Sequence, Collection):
        return f"a sequence, each {describe_type(items[0])}"
    name = getattr(hint if origin is None else origin, "__name__", str(hint))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
