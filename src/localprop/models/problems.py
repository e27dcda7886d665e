"""Checks of arguments that many networks share."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

from localprop.arguments import check_arguments
from localprop.errors import as_bad_sizes

_Build = TypeVar("_Build", bound=Callable[..., Any])


def builds_network(build: _Build) -> _Build:
    """Check the types of a model function's arguments, and refuse sizes that no memory holds.

    Raises:
        BadInput: by the function.
    """
    checked: Any = check_arguments(build)

    @wraps(build)
    def built(*args: Any, **kwargs: Any) -> Any:
        with as_bad_sizes("This network"):
            return checked(*args, **kwargs)

    return built  # type: ignore[return-value]


def find_count_problems(**counts: int) -> Iterator[str]:
    """Check counts such as classes or channels, given by name. Yields one sentence per problem.

    Example:
        >>> list(find_count_problems(num_classes=10, in_chans=0))
        ['in_chans is 0, but at least 1 is needed: pass a positive number.']
    """
    for name, count in counts.items():
        if count < 1:
            yield f"{name} is {count}, but at least 1 is needed: pass a positive number."


def find_dropout_problems(dropout: float) -> Iterator[str]:
    """Check a dropout probability. Yields a sentence if it lies outside [0, 1).

    Example:
        >>> list(find_dropout_problems(0.2))
        []
    """
    if not 0 <= dropout < 1:
        yield f"dropout={dropout} must lie in [0, 1)."
