"""Checks of the values that comparisons, benchmarks and simulations take."""

from __future__ import annotations

import re
from collections.abc import Mapping

from localprop.arguments import has_type
from localprop.errors import BadInput, show

BYTES_PER_SECOND = {
    f"{prefix}{unit}/s": 1000**power * bytes_per_unit
    for power, prefix in enumerate(("", "k", "M", "G", "T"))
    for unit, bytes_per_unit in (("B", 1.0), ("bit", 1 / 8))
}
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def is_count(value: object) -> bool:
    """Whether a value is a whole number of 1 or more.

    Example:
        >>> is_count(3), is_count("3"), is_count(0)
        (True, False, False)
    """
    return has_type(value, int) and isinstance(value, int) and value >= 1


def find_range_problems(**counts: tuple[object, int]) -> list[str]:
    """Find counts that are out of range.

    Args:
        counts: each as its value and its minimum.

    Example:
        >>> find_range_problems(seeds=(3, 1), rounds=(1, 2))
        ['rounds=1 must be a whole number of 2 or more.']
    """
    return [
        f"{name}={show(count)} must be a whole number of {minimum} or more{_find_end(count)}."
        for name, (count, minimum) in counts.items()
        if not has_type(count, int) or count < minimum  # type: ignore[operator]
    ]


def _find_end(count: object) -> str:
    return ", of 64 bits at most" if isinstance(count, int) and not has_type(count, int) else ""


def parse_quantity(name: str, text: str, units: Mapping[str, float], example: str) -> float:
    """Parse a number with a unit.

    Args:
        name: of the value, for the error message.
        text: such as 25GB/s.
        units: the worth of each unit.
        example: of a correct value, for the error message.

    Raises:
        BadInput: if the text is not a number with one of the units.

    Example:
        >>> parse_quantity("link", "25GB/s", BYTES_PER_SECOND, "25GB/s")
        25000000000.0
        >>> parse_quantity("link", "400 Gbit/s", BYTES_PER_SECOND, "25GB/s")
        50000000000.0
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(\D+?)\s*", text)
    if match is None or match[2] not in units:
        raise BadInput(
            f"{name}={text!r} is not a number with a unit: write for example {example} "
            f"(units: {', '.join(units)})."
        )
    return float(match[1]) * units[match[2]]
