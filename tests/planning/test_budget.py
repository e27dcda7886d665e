"""A learner within a budget: the best of one rule, measured, and what it says of itself."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from functools import cache
from typing import Any

import pytest
import torch

import localprop as lp
from localprop.cost.fake_engine import list_held_tensors
from localprop.cost.memory import measure_peak
from localprop.planning.candidates import Way
from localprop.planning.sizes import read_size
from localprop.tasks.batch import Batch
from tests.helpers.plans import BATCH, adamw, build_rows


def make(budget: Any, rule: lp.Rule | None = None, **options: Any) -> lp.Learner:
    chosen: dict[str, Any] = {"optimizer": adamw, "sample": BATCH, **options}
    return lp.Learner(build_rows(), rule or lp.greedy(), budget=budget, **chosen)


@cache
def make_once(budget: str) -> tuple[lp.Learner, lp.Plan, Way]:
    learner = make(budget)
    plan = learner.plan
    assert plan is not None
    assert plan.best is not None
    return learner, plan, plan.best


@pytest.mark.parametrize("budget", ["240kB", "200kB"])
def test_a_step_stays_within_the_budget(budget: str) -> None:
    learner, plan, best = make_once(budget)
    assert best.rule == learner.rule
    assert len(learner.partition.modules) == best.modules
    assert learner.memory().peak_bytes == best.peak_bytes
    assert plan.plain.peak_bytes > read_size(budget)  # or nothing had to be chosen
    learner.step(BATCH)
    held = list_held_tensors(
        (learner.model, learner.heads), learner.engine.optimizers.all(), Batch.of(BATCH)
    )
    read = measure_peak(lambda: learner.step(BATCH), held, torch.device("cpu"))
    assert read.peak_bytes <= read_size(budget)


def test_the_fastest_of_the_rule_is_taken() -> None:
    learner, plan, best = make_once("240kB")
    fitting = [way for way in plan.ways if way.rule == learner.rule and plan.fits(way)]
    assert best.time == min(way.time for way in fitting)
    assert any(way.rule != learner.rule for way in plan.ways)
    assert all(way.rule == learner.rule for way in plan.front)


def test_end_to_end_takes_what_it_has() -> None:
    learner = make("300kB", lp.end_to_end())
    assert len(learner.partition.modules) == 1
    assert learner.plan is not None
    assert {way.method for way in learner.plan.ways} == {"end_to_end"}


def test_the_summary_of_a_budget() -> None:
    learner, plan, best = make_once("240kB")
    found = re.fullmatch(
        r"peak (\S+) kB of 240\.0 kB predicted for 512 x \(16,\) in fp32 \(end-to-end (\S+) kB, "
        r"best 16 micro-batches (\S+) kB at (\S+) x\): (\d) modules?(.*), "
        r"(\S+) x the time by operations",
        learner.summary(),
    )
    assert found is not None, learner.summary()
    split = [w for w in plan.ways if w.method == "end_to_end" and w.microbatches == 16]
    assert float(found[1]) == pytest.approx(learner.memory().peak_bytes / 1e3, abs=0.05)
    assert float(found[2]) == pytest.approx(plan.plain.peak_bytes / 1e3, abs=0.05)
    assert float(found[3]) in [round(way.peak_bytes / 1e3, 1) for way in split]
    assert int(found[5]) == len(learner.partition.modules)
    assert float(found[7]) == pytest.approx(best.time, abs=0.005)


def test_the_summary_of_any_learner() -> None:
    options: dict[str, Any] = {"optimizer": adamw, "sample": BATCH, "precision": "bf16"}
    learner = lp.Learner(
        build_rows(), lp.greedy(), modules=2, recompute=2, microbatches=4, **options
    )
    peak = f"{learner.memory().peak_bytes / 1e3:.1f}"
    assert learner.summary() == (
        f"peak {peak} kB predicted for 512 x (16,) in bf16: 2 modules, recompute=2, 4 micro-batches"
    )


def test_what_a_budget_chooses_cannot_be_given() -> None:
    with pytest.raises(lp.BadInput) as caught:
        make("300kB", modules=2, recompute=True, microbatches=2)
    named = [problem.partition("=")[0] for problem in caught.value.problems]
    assert named == ["modules", "recompute", "microbatches"]


def test_an_optimizer_of_all_parameters_is_refused() -> None:
    optimizer = torch.optim.SGD(build_rows().parameters(), lr=0.1)
    with pytest.raises(lp.BadInput, match="budget= needs a factory"):
        make("300kB", optimizer=optimizer)


def test_several_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localprop.ranks.pipeline.count_processes", lambda: 2)
    with pytest.raises(lp.BadInput, match="several ranks: give modules="):
        make("300kB")


def test_where_nothing_fits() -> None:
    with pytest.raises(lp.BadInput) as caught:
        make("10kB")
    message = str(caught.value)
    smallest = re.search(r"the smallest budget is (\S+ kB)", message)
    assert smallest is not None
    make(round(read_size(smallest[1]) * 1.03))


@pytest.mark.parametrize("budget", ["lots", 0, -1])
def test_what_is_no_size(budget: Any) -> None:
    with pytest.raises(lp.BadInput, match="is no size"):
        make(budget)


def test_a_rule_that_cannot_train_the_network_says_why() -> None:
    batch = torch.randn(8, 12), torch.randint(10, (8,))
    with pytest.raises(lp.BadInput, match="KineticPenalty finds no residual branch"):
        lp.Learner(lp.models.mlp(12), lp.trgl(), budget="1GB", optimizer=adamw, sample=batch)


@pytest.mark.parametrize("frozen", ["2.weight", "2.*", "0.*"])
def test_frozen_parameters_and_layers_need_less(frozen: str) -> None:
    model = build_rows()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not fnmatch(name, frozen))
    learner = lp.Learner(model, lp.greedy(), budget="1MB", optimizer=adamw, sample=BATCH)
    assert learner.plan is not None
    assert learner.plan.best is not None
    assert learner.memory().peak_bytes == pytest.approx(learner.plan.best.peak_bytes, abs=32)
    whole = make_once("240kB")[1]
    assert learner.plan.plain.peak_bytes < whole.plain.peak_bytes


def test_a_learner_that_is_rebuilt_keeps_its_cuts() -> None:
    learner, _, _ = make_once("200kB")
    cuts = learner.partition.modules
    learner.rebuild()
    assert learner.partition.modules == cuts
    assert learner.plan is None
    learner.step(BATCH)
