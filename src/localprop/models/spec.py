"""Read the options in a model's name, such as `resnet32:widen=2`, without running them as code."""

import ast
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any, NamedTuple

from localprop.errors import BadInput, check

# Arguments that follow from the data set. A name may not set them.
SET_BY_DATA = ("num_classes", "in_chans", "input_shape", "in_features", "vocabulary", "context")
FORM = "write NAME:option=value,option=value (only hidden widths go without a name, mlp:512,512)"


class ModelSpec(NamedTuple):
    """A model's name, taken apart.

    Attributes:
        name: the network.
        values: the values without an option name, as in mlp:512,512.
        options: the values with one.
    """

    name: str
    values: tuple[Any, ...]
    options: dict[str, Any]


def parse_model_spec(text: str, separator: str = ":") -> ModelSpec:
    """Split `NAME:option=value,...` into the name and its options.

    A value is a Python literal. A bare word is a string.

    Args:
        text: the name with its options.
        separator: what stands between the name and the options.

    Raises:
        BadInput: if the options are no such list, or one is given twice.

    Example:
        >>> parse_model_spec("resnet32:widen=2,shortcut=pad")
        ModelSpec(name='resnet32', values=(), options={'widen': 2, 'shortcut': 'pad'})
    """
    name, _, arguments = text.partition(separator)
    call = _parse_call(text, arguments)
    names = Counter(str(keyword.arg) for keyword in call.keywords)
    repeated = sorted(option for option, count in names.items() if count > 1)
    check(f"{text!r} gives {option} twice: remove one." for option in repeated)
    values = tuple(_read_literal(text, node) for node in call.args)
    options = {str(keyword.arg): _read_literal(text, keyword.value) for keyword in call.keywords}
    return ModelSpec(name, values, options)


def _parse_call(text: str, arguments: str) -> ast.Call:
    """Parse the options as the arguments of a function call, without running it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The parser may warn about code that never runs.
            call = ast.parse(f"_({arguments})", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise BadInput(f"The options of {text!r} cannot be read ({reason}): {FORM}.") from error
    # "1)(2" parses as a call of a call, and "**2" as a keyword without a name.
    if not (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and all(keyword.arg for keyword in call.keywords)
    ):
        raise BadInput(f"The options of {text!r} cannot be read: {FORM}.")
    return call


def _read_literal(text: str, node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        source = ast.unparse(node)[:60]
        raise BadInput(
            f"{source} in {text!r} is no value: use numbers, words, True, False or tuples such as"
            " (1, 2)."
        ) from error


def options_of(build: Callable[..., Any]) -> dict[str, Parameter]:
    """The arguments of a model function that a name may set.

    Example:
        >>> def build(num_classes: int = 10, widen: int = 1) -> None: ...
        >>> list(options_of(build))
        ['widen']
    """
    parameters = signature(build).parameters
    return {name: value for name, value in parameters.items() if name not in SET_BY_DATA}


def find_option_problems(
    name: str, build: Callable[..., Any], options: Mapping[str, Any]
) -> Iterator[str]:
    """Check the options in a name against the arguments of the model's function.

    Yields one sentence per problem.
    """
    known = options_of(build)
    listed = ", ".join(f"{option}={parameter.default!r}" for option, parameter in known.items())
    available = f"It has {listed}." if known else "It has none."
    for option, value in options.items():
        if option not in known:
            close = get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            yield f"{name} has no option {option!r}: {hint}{available}"
        elif not _matches_type(value, default := known[option].default):
            yield (
                f"{name}:{option}={value!r} does not fit: give something like {option}={default!r}."
            )


def _matches_type(value: object, default: object) -> bool:
    """Whether a value has the type of the default. Tuples hold whole numbers."""
    if isinstance(default, float):
        return type(value) in (int, float)
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and all(type(item) is int for item in value)
    return type(value) is type(default)
