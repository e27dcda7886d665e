"""Methods as text: `backlink(layers=2)` is read as data and never run as code."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from textwrap import shorten
from types import ModuleType
from typing import TYPE_CHECKING, Any

from localprop.errors import BadInput, check

if TYPE_CHECKING:
    from localprop.rule.rule import Rule

_MAX_LENGTH = 2000  # characters; longer text may nest deeper than Python's own parser can read
_FAILED = object()  # the value of an expression that cannot be read; its problem is in the list


def parse_rule(text: str) -> Rule:
    """Read a rule from the expression that would make it.

    The expression is a method or a part of a rule by name, with literals or such expressions as
    arguments.

    Args:
        text: such as "greedy", "backlink(layers=2, weight=0.5)", "greedy(aux=Head(convs=0))" or the
            repr of a rule.

    Raises:
        BadInput: unknown names (with close matches), unknown arguments or arguments of a wrong
            type, or text that is not such an expression.

    Example:
        >>> parse_rule("interlocking(wise=3)").credit
        InterlockingCredit(wise=3, combine='only')
    """
    from localprop.rule.rule import Rule

    reader = _Reader()
    try:
        value = reader.read(_parse_expression(text), top=True)
    except RecursionError as error:
        raise BadInput(
            f"The method {_quote(text)} is nested too deeply: {_list_choices()}"
        ) from error
    check(reader.problems)
    if not isinstance(value, Rule):
        raise BadInput(
            f"The method {_quote(text)} makes a {type(value).__name__}, but a rule is needed: "
            f"{_list_choices()}"
        )
    return value


def find_methods() -> dict[str, Callable[..., Any]]:
    """The public functions of `localprop.methods`, by name.

    Example:
        >>> sorted(find_methods())[:2]
        ['auglocal', 'backlink']
    """
    import localprop.methods as package

    return {name: getattr(package, name) for name in package.__all__}


def find_parts() -> dict[str, Callable[..., Any]]:
    """The public parts of rules, by name.

    A part is a dataclass that needs no argument, in the `__all__` of a module of rule/ or methods/.

    Example:
        >>> "Head" in find_parts()
        True
    """
    parts = {}
    for module in _import_modules():
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if isinstance(value, type) and is_dataclass(value) and not _find_required(value):
                parts[name] = value
    return dict(sorted(parts.items()))


def _import_modules() -> Iterator[ModuleType]:
    """The modules of rule/ and methods/."""
    import localprop.methods
    import localprop.rule

    for package in (localprop.rule, localprop.methods):
        for info in iter_modules(package.__path__):
            yield import_module(f"{package.__name__}.{info.name}")


def _find_required(make: Callable[..., Any]) -> list[str]:
    """The names of the parameters without a default."""
    return [p.name for p in inspect.signature(make).parameters.values() if p.default is p.empty]


def _list_choices() -> str:
    return f"choose {_join(find_methods())}, or Rule(...); write NAME or NAME(argument=value)."


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _parse_expression(text: str) -> ast.expr:
    try:
        if len(text) > _MAX_LENGTH:
            raise SyntaxError(f"{len(text)} characters, {_MAX_LENGTH} are allowed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they concern code that runs, and this code never does
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise BadInput(
            f"The method {_quote(text)} cannot be read ({reason}): {_list_choices()}"
        ) from error


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)


class _Reader:
    """Turns a parsed expression into parts and rules, and collects all problems on the way."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._makers = find_methods() | find_parts()

    def read(self, node: ast.expr, *, top: bool = False) -> object:
        """The value of an expression, or _FAILED.

        Args:
            node: the expression.
            top: whether it is the whole text, which must name a method.
        """
        name = _name_of(node.func if isinstance(node, ast.Call) else node)
        if name is not None:
            return self._make(name, node, top)
        if isinstance(node, ast.Tuple):
            members = tuple(self.read(member) for member in node.elts)
            return _FAILED if _FAILED in members else members
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError):
            self.problems.append(
                f"{_unparse(node)} is neither a literal nor a method or part: write a number, a "
                "text, True, False or NAME(argument=value) here."
            )
            return _FAILED

    def _make(self, name: str, node: ast.expr, top: bool) -> object:
        """Call the method or part of this name, the only callables that text can reach."""
        problems_before = len(self.problems)
        make = self._makers.get(name)
        if make is None:
            self.problems.append(self._describe_unknown(name, top))
            return _FAILED
        arguments = self._read_arguments(name, make, node) if isinstance(node, ast.Call) else {}
        missing = [argument for argument in _find_required(make) if argument not in arguments]
        if missing:
            self.problems.append(f"{name} needs {_join(missing)}: add {missing[0]}=...")
        if len(self.problems) > problems_before:
            return _FAILED
        try:
            return make(**arguments)
        except BadInput as error:
            self.problems += error.problems
            return _FAILED

    def _describe_unknown(self, name: str, top: bool) -> str:
        close = get_close_matches(name, self._makers, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else "choose another. "
        names = f"Methods: {_join(find_methods())}." if top else f"Parts: {_join(find_parts())}."
        return f"There is no method or part {name[:80]!r}: {hint}{names}"

    def _read_arguments(
        self, name: str, make: Callable[..., Any], node: ast.Call
    ) -> dict[str, object]:
        parameters = inspect.signature(make).parameters
        arguments: dict[str, object] = {}
        for argument, child in self._match_arguments(name, list(parameters), node):
            if argument in arguments:
                self.problems.append(f"{name} is given {argument} twice: remove one.")
            value = arguments[argument] = self.read(child)
            default = parameters[argument].default
            if value is not _FAILED and not _has_type_of(value, default):
                self.problems.append(
                    f"{name}({argument}={_unparse(child)}): {argument} must be "
                    f"{_describe_type(default)}."
                )
        return arguments

    def _match_arguments(
        self, name: str, known: list[str], node: ast.Call
    ) -> Iterator[tuple[str, ast.expr]]:
        """The arguments of a call with their names; reports those that the method does not have."""
        if len(node.args) > len(known):
            self.problems.append(
                f"{name} is given {len(node.args)} arguments, but has {len(known)}: "
                f"{_join(known) or 'no arguments'}."
            )
        yield from zip(known, node.args, strict=False)
        for keyword in node.keywords:
            if keyword.arg in known:
                yield keyword.arg, keyword.value
            else:
                self.problems.append(_describe_unknown_argument(name, known, keyword))


def _describe_unknown_argument(name: str, known: list[str], keyword: ast.keyword) -> str:
    written = f"**{_unparse(keyword.value)}" if keyword.arg is None else keyword.arg[:80]
    close = get_close_matches(written, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name} has no argument {written!r}: {hint}It has {_join(known) or 'no arguments'}."


def _name_of(node: ast.expr) -> str | None:
    """`Head`, or `lp.Head` as it stands in Python code."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr if node.value.id in ("lp", "localprop") else None
    return node.id if isinstance(node, ast.Name) else None


def _unparse(node: ast.expr) -> str:
    return shorten(ast.unparse(node), 60, placeholder="...")


def _has_type_of(value: object, default: object) -> bool:
    """Whether a value may stand for a default: text for text, a head for a head.

    Annotations are not evaluated, so the default shows what a parameter takes.
    """
    if default is inspect.Parameter.empty:
        return True
    if default is None:
        return value is None or _has_type_of(value, 0.0)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool | int | str):
        return type(value) is type(default)
    return _role_of(value) == _role_of(default)


def _role_of(part: object) -> object:
    """A builder's parameter and return types, which two heads have in common; or a part's class."""
    if not callable(part):
        return type(part)
    signature = inspect.signature(part)
    parameters = [str(parameter.annotation) for parameter in signature.parameters.values()]
    return parameters, str(signature.return_annotation)


def _describe_type(default: object) -> str:
    if isinstance(default, bool):
        return "True or False"
    if default is None:
        return "a number or None"
    if isinstance(default, tuple):
        return f"a tuple such as {default!r}"
    words = {int: "a whole number", float: "a number", str: "a text"}
    return words.get(type(default)) or f"a part such as {type(default).__name__}()"
