"""Methods as text: `backlink(layers=2)` is read as data and never run as code.

Names stand for what localprop has. A name behind a module, `my_methods:two_ahead(weight=0.5)`, is
imported from there: the user has named it. Nothing else can be reached by a text.
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from localprop.errors import BadInput, check
from localprop.methods.names import find_methods, find_parts, find_required
from localprop.user_code import describe_error, import_named

if TYPE_CHECKING:
    from localprop.rule.rule import Rule

_MAX_LENGTH = 2000  # characters; longer text may nest deeper than Python's own parser can read
_FAILED = object()  # the value of an expression that cannot be read; its problem is in the list
_ANYTHING = inspect.Parameter.empty  # the default of an argument that takes any value


def parse_rule(text: str | Rule) -> Rule:
    """Read a rule from the expression that would make it. A rule itself stays as it is.

    The expression is a method or a part of a rule by name, with literals or such expressions as
    arguments. A name from outside of localprop stands behind its module and a colon; the module is
    imported.

    Args:
        text: such as "greedy", "backlink(layers=2, weight=0.5)", "greedy(aux=Head(convs=0))",
            "my_package.my_module:my_method(alpha=0.1)" or the repr of a rule.

    Raises:
        BadInput: unknown names (with close matches), unknown arguments or arguments of a wrong
            type, a module that cannot be imported, or text that is not such an expression.

    Example:
        >>> parse_rule("interlocking(wise=3)").credit
        InterlockingCredit(wise=3, combine='only')
    """
    from localprop.rule.rule import Rule

    if isinstance(text, Rule):
        return text
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


def imports_module(text: str) -> bool:
    """Whether to read a method's text means to import a module. Nothing is imported here.

    Raises:
        BadInput: the text is no expression.

    Example:
        >>> imports_module("greedy(aux=my_heads:Small())"), imports_module("greedy()")
        (True, False)
    """
    nodes = ast.walk(_parse_expression(text))
    return any(isinstance(node, ast.expr) and _split_module(node)[0] for node in nodes)


def _list_choices() -> str:
    return (
        f"choose {_join(find_methods())}, or Rule(...); write NAME or NAME(argument=value), and "
        "MODULE:NAME for a method of your own."
    )


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _parse_expression(text: str) -> ast.expr:
    try:
        if len(text) > _MAX_LENGTH:
            raise SyntaxError(f"{len(text)} characters, {_MAX_LENGTH} are allowed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they concern code that runs, and this code never does
            return ast.parse(_mark_modules(text.strip()), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise BadInput(
            f"The method {_quote(text)} cannot be read ({reason}): {_list_choices()}"
        ) from error


def _mark_modules(text: str) -> str:
    """The text with `module@name` for each `module:name`, which Python's parser can read.

    Raises:
        SyntaxError: the text has an @ of its own, or no tokens.
    """
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except tokenize.TokenError as error:
        raise SyntaxError(error.args[0]) from error
    lines = text.split("\n")  # as the tokens count lines; splitlines knows more ends
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if token.string == "@":
            raise SyntaxError("@ has no meaning here")
        touches = before.end == token.start and token.end == after.start
        if token.string == ":" and before.type == after.type == tokenize.NAME and touches:
            row, column = token.start[0] - 1, token.start[1]
            lines[row] = lines[row][:column] + "@" + lines[row][column + 1 :]
    return "\n".join(lines)


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
        module, named = _split_module(node)
        name = _name_of(named.func if isinstance(named, ast.Call) else named)
        if name is not None:
            return self._make(module, name, named, top)
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

    def _make(self, module: str | None, name: str, node: ast.expr, top: bool) -> object:
        """Call the method or part of this name, the only callables that text can reach."""
        problems_before = len(self.problems)
        if module is None:
            make = self._makers.get(name)
            if make is None:
                self.problems.append(self._describe_unknown(name, top))
                return _FAILED
        else:
            found = self._import(module, name)
            if not callable(found) or found is _FAILED:
                return found  # a rule, or a part that is no function
            make, name = found, f"{module}:{name}"
        arguments = self._read_arguments(name, make, node) if isinstance(node, ast.Call) else {}
        missing = [argument for argument in find_required(make) if argument not in arguments]
        if missing:
            self.problems.append(f"{name} needs {_join(missing)}: add {missing[0]}=...")
        if len(self.problems) > problems_before:
            return _FAILED
        try:
            return make(**arguments)
        except BadInput as error:
            self.problems += error.problems
            return _FAILED
        except Exception as error:
            if module is None:
                raise
            # The user's own code, which may raise anything.
            self.problems.append(
                f"{name} failed ({describe_error(error)}): call it in Python to see where."
            )
            return _FAILED

    def _import(self, module: str, name: str) -> object:
        """What a module of the user's calls by this name, or _FAILED."""
        try:
            found = import_named(module, name)
        except BadInput as error:
            self.problems += error.problems
            return _FAILED
        if callable(found) and _find_signature(found) is None:
            self.problems.append(
                f"{module}:{name} does not say which arguments it takes: name a function."
            )
            return _FAILED
        return found

    def _describe_unknown(self, name: str, top: bool) -> str:
        close = get_close_matches(name, self._makers, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else "choose another. "
        names = f"Methods: {_join(find_methods())}." if top else f"Parts: {_join(find_parts())}."
        own = "One of your own stands behind its module, as my_module:NAME()."
        return f"There is no method or part {name[:80]!r}: {hint}{names} {own}"

    def _read_arguments(
        self, name: str, make: Callable[..., Any], node: ast.Call
    ) -> dict[str, object]:
        parameters = inspect.signature(make).parameters
        arguments: dict[str, object] = {}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        known = [
            p.name for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if takes_any:
            known += [each.arg for each in node.keywords if each.arg and each.arg not in known]
        for argument, child in self._match_arguments(name, known, node):
            if argument in arguments:
                self.problems.append(f"{name} is given {argument} twice: remove one.")
            value = arguments[argument] = self.read(child)
            default = parameters[argument].default if argument in parameters else _ANYTHING
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


def _split_module(node: ast.expr) -> tuple[str | None, ast.expr]:
    """The module before a name, if there is one, and the rest."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        module = ast.unparse(node.left)
        if all(name.isidentifier() for name in module.split(".")):
            return module, node.right
    return None, node


def _find_signature(make: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(make)
    except (ValueError, TypeError):  # some functions written in C have none
        return None


def _unparse(node: ast.expr) -> str:
    return shorten(ast.unparse(node).replace(" @ ", ":"), 60, placeholder="...")


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
    if callable(value) and callable(default) and type(value) not in find_parts().values():
        # A part of the user's own may spell its annotations in other ways, or have none.
        return _count_parameters(value) == _count_parameters(default)
    return _role_of(value) == _role_of(default)


def _count_parameters(part: Callable[..., Any]) -> int | None:
    signature = _find_signature(part)
    return None if signature is None else len(signature.parameters)


def _role_of(part: object) -> object:
    """A builder's parameter and return types, which two heads have in common; or a part's class."""
    if not callable(part):
        return type(part)
    signature = inspect.signature(part)
    parameters = [_name_type(parameter.annotation) for parameter in signature.parameters.values()]
    return parameters, _name_type(signature.return_annotation)


def _name_type(annotation: Any) -> str:
    """`CreditTable`, whether the annotation is a text, a class or `lp.CreditTable`."""
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return name.rpartition(".")[2]


def _describe_type(default: object) -> str:
    if isinstance(default, bool):
        return "True or False"
    if default is None:
        return "a number or None"
    if isinstance(default, tuple):
        return f"a tuple such as {default!r}"
    words = {int: "a whole number", float: "a number", str: "a text"}
    return words.get(type(default)) or f"a part such as {type(default).__name__}()"
