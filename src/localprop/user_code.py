"""Code of the user's: a name in a module or in a file, imported because the user has named it."""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from localprop.errors import BadInput


def import_named(module: str, name: str) -> object:
    """Import what a module or a file of the user's calls by a name.

    Args:
        module: a module such as "my_package.my_module", or the path of a file that ends in .py.
        name: of a function, a class or another object there.

    Raises:
        BadInput: it is part of Python, it cannot be imported, or it has no such name.

    Example:
        >>> import_named("localprop.methods", "greedy") is lp.greedy
        True
    """
    imported = _import_file(module, name) if module.endswith(".py") else _import(module, name)
    if not hasattr(imported, name):
        names = [each for each in vars(imported) if not each.startswith("_")]
        close = get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "correct the name."
        raise BadInput(f"The module {module} has no {name!r}: {hint}")
    return getattr(imported, name)


def describe_error(error: BaseException) -> str:
    """The class of an error and the first line of what it says.

    Example:
        >>> describe_error(KeyError("a"))
        "KeyError: 'a'"
    """
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _import(module: str, name: str) -> ModuleType:
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise BadInput(f"{module} is part of Python, which has no {name}: name another.")
    try:
        return import_module(module)
    except Exception as error:
        raise BadInput(
            f"The module {module} of {module}:{name} cannot be imported "
            f"({describe_error(error)}): correct the name or the module, or start where "
            f"`python -c 'import {module}'` works."
        ) from error


def _import_file(file: str, name: str) -> ModuleType:
    """Run a file once, as the module that its path names."""
    path = Path(os.path.expanduser(file)).resolve()
    key = f"localprop_file:{path}"
    if key in sys.modules:
        return sys.modules[key]
    spec = spec_from_file_location(key, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[key] = module_from_spec(spec)  # before it runs, as dataclasses ask
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise BadInput(
            f"The file of {file}:{name} cannot be run ({describe_error(error)}): correct the path, "
            f"or what `python {file}` says."
        ) from error
    return module
