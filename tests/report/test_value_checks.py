"""Quantities with units, and counts that are out of range."""

from __future__ import annotations

import pytest

from localprop.errors import BadInput
from localprop.report.value_checks import (
    BYTES_PER_SECOND,
    SECONDS,
    find_range_problems,
    parse_quantity,
)


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [("25GB/s", 25e9), ("400 Gbit/s", 50e9), ("1e3kB/s", 1e6), ("0B/s", 0.0)],
)
def test_speeds_have_units(text: str, bytes_per_second: float) -> None:
    assert parse_quantity("link", text, BYTES_PER_SECOND, "25GB/s") == bytes_per_second


@pytest.mark.parametrize("text", ["", "10", "ms", "3years", "-1ms"])
def test_another_text_is_no_quantity(text: str) -> None:
    with pytest.raises(BadInput, match="is not a number with a unit: write for example 10us"):
        parse_quantity("latency", text, SECONDS, "10us")


def test_counts_have_minimums() -> None:
    assert find_range_problems(seeds=(1, 1), rounds=("x", 2)) == [
        "rounds='x' must be a whole number of 2 or more."
    ]
    assert find_range_problems(rounds=(2**64, 2)) == [
        f"rounds={2**64} must be a whole number of 2 or more, of 64 bits at most."
    ]
