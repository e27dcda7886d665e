"""Images in memory: the held-out split, the limit, and the measured normalization."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from localprop.data.arrays import hold_out, measure_normalization, select_per_class


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.floats(0, 0.9))
def test_hold_out_is_stratified_disjoint_and_fixed(labels: list[int], share: float) -> None:
    tensor = torch.tensor(labels)
    kept, held = hold_out(tensor, share)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert torch.equal(held, hold_out(tensor, share)[1])
    for label in set(labels):
        total, held_count = labels.count(label), int((tensor[held] == label).sum())
        assert held_count < total
        if share > 0 and total > 1:
            assert held_count >= 1
            assert abs(held_count - share * total) <= 1


def test_hold_out_is_not_a_prefix() -> None:
    held = hold_out(torch.zeros(1000, dtype=torch.int64), 0.1)[1]
    assert len(held) == 100
    assert 300 < held.double().mean() < 700


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70))
def test_limit_shares_equally_and_keeps_the_order(labels: list[int], limit: int) -> None:
    chosen = select_per_class(torch.tensor(labels), limit).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, len(labels))
    counts = {label: sum(labels[i] == label for i in chosen) for label in set(labels)}
    for label, count in counts.items():
        positions = [i for i, other in enumerate(labels) if other == label]
        assert positions[:count] == [i for i in chosen if labels[i] == label]
        assert count == len(positions) or count >= max(counts.values()) - 1


def test_normalization_is_measured_in_chunks_and_constants_have_deviation_one() -> None:
    images = torch.rand(1500, 2, 3, 3)
    images[:, 1] = 0.1
    found = measure_normalization(images)
    assert found.mean == pytest.approx(images.double().mean((0, 2, 3)).tolist())
    assert found.std == pytest.approx([images[:, 0].double().std(correction=0).item(), 1.0])
