"""What is wrong with the arguments that many networks have."""

from collections.abc import Iterator


def count_problems(**counts: int) -> Iterator[str]:
    """What is wrong with numbers of classes, channels, ..., by name.

    Example:
        >>> list(count_problems(num_classes=10, in_chans=0))
        ['in_chans is 0, but at least 1 is needed: pass a positive number.']
    """
    for name, count in counts.items():
        if count < 1:
            yield f"{name} is {count}, but at least 1 is needed: pass a positive number."


def dropout_problems(dropout: float) -> Iterator[str]:
    """What is wrong with a probability of dropout.

    Example:
        >>> list(dropout_problems(0.2))
        []
    """
    if not 0 <= dropout < 1:
        yield f"dropout={dropout} must lie in [0, 1)."
