"""Limits: why a network caps an argument of a part, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from localprop.network.partition import Partition


def find_limits(part: object, partition: Partition) -> Mapping[str, str]:
    """Ask a part why a network caps its arguments.

    A part answers by a method `find_limits(partition)`, which yields the name of an argument and
    the reason. Most parts need none: that an argument has no effect is found without it.

    Args:
        part: a part of a rule.
        partition: the network and its cuts.

    Returns:
        The reasons, by the names of the arguments.

    Example:
        >>> layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 32, 32))
        >>> find_limits(lp.BackwardLinks(layers=2), lp.Partition.uniform(layers, 4))
        {'layers': 'modules 0-2 have 1 layer each'}
    """
    method = getattr(part, "find_limits", None)
    return dict(method(partition)) if method else {}


def format_modules(modules: Iterable[int]) -> str:
    """Name modules by their numbers, neighbours as a range.

    Args:
        modules: one number or more, in order.

    Example:
        >>> format_modules([0, 1, 2, 5]), format_modules([4])
        ('modules 0-2 and 5', 'module 4')
    """
    numbers = list(modules)
    # Neighbours have the same distance from their position.
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    *rest, last = words
    named = f"{', '.join(rest)} and {last}" if rest else last
    return f"module{'s' if len(numbers) > 1 else ''} {named}"
