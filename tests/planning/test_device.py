"""Plans for an accelerator: what the host may keep."""

from __future__ import annotations

from dataclasses import replace

import pytest

import localprop as lp
from tests.helpers.plans import BATCH, adamw, build_rows


def test_an_accelerator_has_a_row_for_offload_which_is_never_taken() -> None:
    found = lp.plan(
        build_rows(), BATCH, optimizer=adamw, methods=[], microbatches=[1], device="cuda"
    )
    (way,) = [way for way in found.ways if way.offload]
    assert way.confirmed
    assert way.peak_bytes < found.front[0].peak_bytes
    assert way.host_bytes is not None
    assert way.peak_bytes + way.host_bytes > found.plain.peak_bytes
    assert not any(way.offload for way in found.front)
    assert " offload |" in str(found)
    assert any("wait in the host's memory" in note for note in found.notes)
    (row,) = [row for row in found.as_json()["rows"] if row["host_bytes"] is not None]
    assert row["learner"]["offload"]
    learner = lp.Learner(build_rows(), **way.kwargs, optimizer=adamw, sample=BATCH)
    assert learner.engine.offload is not None

    budget = round(1.002 * (way.peak_bytes + found.spare))
    assert found.fit(budget) is None
    told = replace(found, budget=budget).describe()
    assert "It would fit by end_to_end, offload" in told


def test_a_device_that_torch_does_not_know_is_refused() -> None:
    with pytest.raises(lp.BadInput, match="unknown to torch"):
        lp.plan(build_rows(), BATCH, device="gpu")
