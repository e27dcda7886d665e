"""What text about methods can name: the methods and parts of localprop; and methods as text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localprop.rule.rule import Rule


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
            if isinstance(value, type) and is_dataclass(value) and not find_required(value):
                parts[name] = value
    return dict(sorted(parts.items()))


def _import_modules() -> Iterator[ModuleType]:
    """The modules of rule/ and methods/."""
    import localprop.methods
    import localprop.rule

    for package in (localprop.rule, localprop.methods):
        for info in iter_modules(package.__path__):
            yield import_module(f"{package.__name__}.{info.name}")


def find_required(make: Callable[..., Any]) -> list[str]:
    """The names of the parameters without a default; `*args` and `**kwargs` may stay empty."""
    return [
        p.name
        for p in inspect.signature(make).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def format_method(method: str | Rule) -> str:
    """A method as text, which `localprop.methods.parse.parse_rule` reads. A text stays as it is.

    Of a rule only what is not a default is written. A part from outside of localprop is written
    behind its module, as `my_methods:TwoAhead(weight=0.25)`; it is readable if it is a dataclass.

    Example:
        >>> from localprop.methods import backlink
        >>> format_method(backlink(layers=2))
        "Rule(credit=BackwardLinks(layers=2), reference='Guo et al. 2023, arXiv 2205.07141')"
    """
    return method if isinstance(method, str) else _format(method)


def _format(value: object) -> str:
    if isinstance(value, tuple):
        return f"({''.join(f'{_format(each)}, ' for each in value).rstrip(' ')})"
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    made = [field for field in fields(value) if field.init]
    given = {field.name: getattr(value, field.name) for field in made}
    arguments = [
        f"{field.name}={_format(given[field.name])}"
        for field in made
        if field.default != given[field.name]
    ]
    kind = type(value)
    name = kind.__name__
    if find_parts().get(name) is not kind:
        name = f"{kind.__module__}:{name}"
    return f"{name}({', '.join(arguments)})"
