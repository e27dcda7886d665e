"""Plans for an accelerator: what the host may keep, and what CUDA needs besides tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import localprop as lp
from localprop.cost.cuda_margin import find_margin, round_to_blocks
from localprop.cost.fake_engine import list_held_tensors
from localprop.cost.memory import LiveBytes, measure_peak, predict_memory
from localprop.planning.sizes import format_size
from localprop.tasks.batch import Batch
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

    if not torch.cuda.is_available():
        assert any("8.5 MB for cuBLAS and 500.0 MB for its context" in note for note in found.notes)
    assert found.candidates is not None
    rounded = found.candidates.confirm(found.plain, count=round_to_blocks).peak_bytes
    assert found.plain.peak_bytes < rounded < found.plain.peak_bytes + 512 * 100
    assert f"blocks of 512 bytes: of end_to_end, {format_size(rounded)}" in found.notes[-1]

    budget = round(1.002 * (way.peak_bytes + found.spare))
    assert found.fit(budget) is None
    told = replace(found, budget=budget).describe()
    assert "It would fit by end_to_end, offload" in told


def test_a_device_that_torch_does_not_know_is_refused() -> None:
    with pytest.raises(lp.BadInput, match="unknown to torch"):
        lp.plan(build_rows(), BATCH, device="gpu")


def test_storages_count_as_blocks() -> None:
    with LiveBytes(count=round_to_blocks) as live:
        small, large = torch.zeros(3), torch.zeros(129)
        assert live.current == 512 + 1024
        del small
        assert live.current == 1024
        del large
    assert live.current == 0
    assert live.peak == 1536


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_peak_in_blocks_is_what_the_allocator_counts() -> None:
    model, batch = build_rows().cuda(), tuple(tensor.cuda() for tensor in BATCH)
    margin = find_margin(torch.device("cuda"))
    assert margin.measured
    assert margin.context_bytes > 0
    learner = lp.Learner(model, lp.greedy(), modules=2, optimizer=adamw, sample=batch)
    learner.step(batch)
    held = list_held_tensors((model, learner.heads), learner.optimizers, Batch.of(batch))
    read = measure_peak(lambda: learner.step(batch), held, torch.device("cuda"))
    predicted = predict_memory(learner.engine, [], Batch.of(batch), count=round_to_blocks)
    more = read.resting_bytes - predicted.resting_bytes  # workspaces, and other tests
    assert read.peak_bytes - more == pytest.approx(predicted.peak_bytes, rel=0.1)
