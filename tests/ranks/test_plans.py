"""Plans for several ranks: a budget for each, and the peak is that of the rank with the most."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import localprop as lp
from localprop.planning.candidates import Way
from localprop.training.plan_file import SavedPlan
from tests.helpers.plans import BATCH, adamw, build_rows
from tests.helpers.ranks import RankPool

pytestmark = pytest.mark.xdist_group("ranks")


def predict_own_peak(modules: int, microbatches: int, rule: lp.Rule) -> int:
    learner = lp.Learner(
        build_rows(), rule, modules=modules, microbatches=microbatches, optimizer=adamw,
        sample=BATCH,
    )  # fmt: skip
    return learner.memory().peak_bytes


def test_a_way_has_the_peak_of_the_rank_with_the_most(pool: RankPool) -> None:
    found = lp.plan(
        build_rows(), BATCH, optimizer=adamw, methods=["backlink", "sgr"], ranks=2,
        budget="400kB", microbatches=(1, 2),
    )  # fmt: skip
    plain, *ways = found.ways
    assert plain.modules == 1
    assert plain not in found.front
    assert {way.microbatches for way in ways} == {1, 2}
    assert all(way.confirmed and way.modules >= 2 for way in ways)
    assert any(note.startswith("sgr is left out: ") for note in found.notes)
    assert any("rank with the most of 2" in note for note in found.notes)
    assert found.made_for is not None
    assert found.made_for.ranks == 2

    def find(method: str, microbatches: int) -> Way:
        return next(
            way
            for way in ways
            if (way.method, way.microbatches, way.recompute) == (method, microbatches, 0)
        )

    for way in (find("end_to_end", 1), find("backlink", 2)):
        peaks = pool.run(2, predict_own_peak, way.modules, way.microbatches, way.rule)
        assert way.peak_bytes == max(peaks) > min(peaks)

    before = None
    for percent in range(1, 130):
        way_within = found.fit(max(1, plain.peak_bytes * percent // 100))
        if before is not None and way_within is not None:
            assert way_within.peak_bytes >= before.peak_bytes
            assert way_within.time <= before.time
        before = way_within or before
    assert found.best is not None
    assert found.best.peak_bytes < 400_000


def test_what_several_ranks_cannot_be_asked_for() -> None:
    with pytest.raises(lp.BadInput, match="whole number"):
        lp.plan(build_rows(), BATCH, ranks=0)
    with pytest.raises(lp.BadInput, match="times one process"):
        lp.plan(build_rows(), BATCH, ranks=2, measure=True)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 10))
    with pytest.raises(lp.BadInput, match="ranks=5, but the model has 2 layers"):
        lp.plan(model, BATCH, ranks=5, methods=[])


def test_a_plan_for_ranks_is_trained_by_as_many() -> None:
    saved = SavedPlan(
        Path("plan.json"), {"method": "Rule()", "model": "mlp"}, (1, 8, 8), 10, ranks=2
    )
    with pytest.raises(lp.BadInput, match="nproc-per-node 2"):
        saved.merge({})
