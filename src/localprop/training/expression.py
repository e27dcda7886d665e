"""Methods as text: `backlink(layers=2)` is read as data and never run as code."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from difflib import get_close_matches
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from localprop.errors import BadInput, check

if TYPE_CHECKING:
    from localprop.rule.rule import Rule

_LONGEST = 2000  # characters; more could nest so deeply that Python's own parser gives up
_FAILED = object()  # the value of what could not be read, whose problem is noted already


def rule_of(text: str) -> Rule:
    """Read a rule from the expression that would make it: a method or part by name, with literal or nested arguments.

    Args:
        text: such as "greedy", "backlink(layers=2, weight=0.5)", "greedy(aux=Head(convs=0))" or a rule's repr.

    Raises:
        BadInput: unknown names (with close matches), unknown or unfit arguments, anything that is no such expression.

    Example:
        >>> rule_of("interlocking(wise=3)").credit
        Interlocked(wise=3, combine='only')
    """
    from localprop.rule.rule import Rule

    reader = _Reader()
    try:
        value = reader.value(_parsed(text), top=True)
    except RecursionError as error:
        raise BadInput(f"The method {_shown(text)} is nested too deeply: {_choice()}") from error
    check(reader.problems)
    if not isinstance(value, Rule):
        raise BadInput(f"The method {_shown(text)} makes a {type(value).__name__}, but a rule is needed: {_choice()}")
    return value


def methods() -> dict[str, Callable[..., Any]]:
    """The public functions of :mod:`localprop.methods`, by name.

    Example:
        >>> sorted(methods())[:2]
        ['auglocal', 'backlink']
    """
    import localprop.methods as module

    found = inspect.getmembers(module, inspect.isfunction)
    return {
        name: make
        for name, make in found
        if make.__module__.startswith(f"{module.__name__}.") and not name.startswith("_")
    }


def parts() -> dict[str, Callable[..., Any]]:
    """The public parts of rules, by name: dataclasses that need no argument (what the engine makes needs some).

    Example:
        >>> "Head" in parts()
        True
    """
    import localprop

    public = {name: getattr(localprop, name) for name in localprop.__all__}
    return {
        name: part
        for name, part in public.items()
        if isinstance(part, type) and is_dataclass(part) and _of_a_rule(part) and not _needed(part)
    }


def _of_a_rule(part: type) -> bool:
    return part.__module__.startswith("localprop.rule.")


def _needed(make: Callable[..., Any]) -> list[str]:
    return [p.name for p in inspect.signature(make).parameters.values() if p.default is p.empty]


def _choice() -> str:
    return f"choose {', '.join(methods())}, or Rule(...); write NAME or NAME(argument=value)."


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _parsed(text: str) -> ast.expr:
    try:
        if len(text) > _LONGEST:
            raise SyntaxError(f"{len(text)} characters, {_LONGEST} are allowed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about code that is never run
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise BadInput(f"The method {_shown(text)} cannot be read ({reason}): {_choice()}") from error


class _Reader:
    """Turns a parsed expression into parts and rules, and notes all problems on the way."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._names = methods() | parts()

    def value(self, node: ast.expr, *, top: bool = False) -> object:
        name = _name_of(node.func if isinstance(node, ast.Call) else node)
        if name is not None:
            return self._made(name, node, top)
        if isinstance(node, ast.Tuple):
            members = tuple(self.value(member) for member in node.elts)
            return _FAILED if _FAILED in members else members
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError):
            self.problems.append(
                f"{_source(node)} is neither a literal nor a method or part: numbers, texts, True, False and "
                "NAME(argument=value) can stand here."
            )
            return _FAILED

    def _made(self, name: str, node: ast.expr, top: bool) -> object:
        before = len(self.problems)
        make = self._names.get(name)
        if make is None:
            self.problems.append(self._unknown(name, top))
            return _FAILED
        given = self._arguments(name, make, node) if isinstance(node, ast.Call) else {}
        lacking = [argument for argument in _needed(make) if argument not in given]
        if lacking:
            self.problems.append(f"{name} needs {', '.join(lacking)}: add {lacking[0]}=...")
        if len(self.problems) > before:
            return _FAILED
        try:
            return make(**given)
        except BadInput as error:
            self.problems += error.problems
            return _FAILED

    def _unknown(self, name: str, top: bool) -> str:
        close = get_close_matches(name, self._names, n=3)
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        listed = f"Methods: {', '.join(methods())}." if top else f"Parts: {', '.join(parts())}."
        return f"There is no method or part {name[:80]!r}: {meant or 'choose another. '}{listed}"

    def _arguments(self, name: str, make: Callable[..., Any], node: ast.Call) -> dict[str, object]:
        parameters = inspect.signature(make).parameters
        given: dict[str, object] = {}
        for argument, child in self._named(name, list(parameters), node):
            if argument in given:
                self.problems.append(f"{name} is given {argument} twice: remove one.")
            value = given[argument] = self.value(child)
            if value is not _FAILED and not _fits(value, parameters[argument].default):
                wanted = _wanted(parameters[argument].default)
                self.problems.append(f"{name}({argument}={_source(child)}): {argument} must be {wanted}.")
        return given

    def _named(self, name: str, known: list[str], node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
        """The arguments with their names; of those that cannot be, the problem is noted."""
        if len(node.args) > len(known):
            self.problems.append(f"{name} is given {len(node.args)} arguments, but has {len(known)}: {_has(known)}.")
        yield from zip(known, node.args, strict=False)
        for keyword in node.keywords:
            if keyword.arg in known:
                yield keyword.arg, keyword.value
            else:
                written = "**" + _source(keyword.value) if keyword.arg is None else keyword.arg[:80]
                close = get_close_matches(written, known, n=1)
                meant = f"did you mean {close[0]}? " if close else ""
                self.problems.append(f"{name} has no argument {written!r}: {meant}It has {_has(known)}.")


def _has(known: list[str]) -> str:
    return ", ".join(known) or "no arguments"


def _name_of(node: ast.expr) -> str | None:
    """`Head`, or `lp.Head` as it stands in Python code."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("lp", "localprop"):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def _source(node: ast.expr) -> str:
    return shorten(ast.unparse(node), 60, placeholder="...")


def _fits(value: object, default: object) -> bool:
    """Whether a value is of the default's kind: a text for a text, an auxiliary network for an auxiliary network."""
    if default is inspect.Parameter.empty:
        return True
    if default is None:
        return value is None or _fits(value, 0.0)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool | int | str):
        return type(value) is type(default)
    return _kind(value) == _kind(default)


def _kind(part: object) -> object:
    """What a part is: a builder by what it is called with and what it makes, another part by its class."""
    if not callable(part):
        return type(part)
    signature = inspect.signature(part)
    return [str(p.annotation) for p in signature.parameters.values()], str(signature.return_annotation)


def _wanted(default: object) -> str:
    if isinstance(default, bool):
        return "True or False"
    if default is None:
        return "a number or None"
    if isinstance(default, tuple):
        return f"a tuple such as {default!r}"
    words = {int: "a whole number", float: "a number", str: "a text"}
    return words.get(type(default)) or f"a part such as {type(default).__name__}()"
