"""A thousand steps, refused and failed ones among them, leave nothing behind.

benchmarks/long_runs.py trains ten times as many by every method.
"""

from __future__ import annotations

import long_runs
import pytest


@pytest.mark.parametrize("method", ["greedy", "backlink", "contsup"])
def test_nothing_grows(method: str) -> None:
    found = long_runs.measure(method, 1000)
    before, after = found["before"], found["after"]
    assert found["refused"] == found["failed"] == 18  # of 900 steps every 50th
    assert after["tensors"] == before["tensors"]
    # One object for each step would be 900, and those of failures alone 18.
    assert after["objects"] <= before["objects"] + 15
    assert after["descriptors"] == before["descriptors"]
    assert after["threads"] == before["threads"]
    assert after["resident_bytes"] < before["resident_bytes"] + 20 * 2**20
