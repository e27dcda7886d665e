"""Checks of arguments that many networks share."""

from collections.abc import Iterator


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
