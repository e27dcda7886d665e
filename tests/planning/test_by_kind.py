"""What a peak is for, against the tensors of a learner; other batches, against the engine."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

import localprop as lp
from localprop.planning.by_kind import split_peak
from localprop.planning.candidates import Way
from localprop.planning.sizes import format_size
from tests.helpers.plans import BATCH, adamw, build_rows, make_hand_plan

HEAD = "greedy(aux=Head(convs=0, linears=1))"


@cache
def make_plan() -> lp.Plan:
    parts = 1, 16
    return lp.plan(
        build_rows(), BATCH, budget="240kB", optimizer=adamw, methods=[HEAD], microbatches=parts
    )


def make_learner(way: Way, samples: int) -> lp.Learner:
    sample = torch.randn(samples, 16), torch.randint(10, (samples,))
    return lp.Learner(build_rows(), **way.kwargs, optimizer=adamw, sample=sample)


def test_weights_optimizer_and_batch_are_those_of_a_learner() -> None:
    plan = make_plan()
    assert plan.candidates is not None
    local = next(way for way in plan.ways if way.modules == 3)
    for way in (plan.plain, local):
        learner = make_learner(way, 512)
        learner.step(BATCH)
        states = [each for made in learner.optimizers for each in made.state.values()]
        found = split_peak(plan.candidates, way)
        assert found.weights == sum(p.nbytes for p in learner.parameters())
        state = sum(tensor.nbytes for each in states for tensor in each.values())
        assert state <= found.optimizer <= state + 4  # a number of the engine's
        assert found.batch == sum(tensor.nbytes for tensor in BATCH)
        assert sum(nbytes or 0 for nbytes in found) == way.peak_bytes
        assert found.gradients is not None
        # None of the network's are there before the first backward, and never more than weights.
        assert 0 <= found.gradients <= found.weights


def test_the_table_and_the_file_have_them() -> None:
    plan = make_plan()
    assert plan.candidates is not None
    cells = [cell.strip() for cell in str(plan).splitlines()[2].split("|")[1:-1]]
    kinds = split_peak(plan.candidates, plan.plain)
    assert cells[5:10] == ["-" if each is None else format_size(each) for each in kinds]
    assert plan.as_json()["rows"][0]["peak_by_kind"] == kinds._asdict()
    assert str(make_hand_plan()).splitlines()[2].split().count("-") == 5


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    plan, limit = make_plan(), 400_000
    sizes = plan.largest_batch(limit)
    assert {*map(str, sizes)} == {str(way) for way in plan.largest_batch("1kB")}
    for way, samples in sizes.items():
        if way.microbatches > 1:
            continue
        within, beyond = (make_learner(way, n).memory().peak_bytes for n in (samples, samples + 1))
        spare = plan.spare * samples / 512
        assert within <= limit * 0.999 - spare
        assert beyond > limit * 0.999 - spare - 1000  # the replay may be a few bytes off


def test_more_bytes_and_more_parts_take_no_smaller_batch() -> None:
    plan = make_plan()
    small, large = plan.largest_batch("200kB"), plan.largest_batch("2MB")
    assert all(small[way] < large[way] for way in small)
    split = next(way for way in small if way.microbatches > 1 and way.method == "end_to_end")
    assert small[split] > small[plan.plain]


def test_a_batch_of_which_nothing_fits() -> None:
    assert {*make_plan().largest_batch("1kB").values()} == {0}


def test_the_sentence_names_the_largest_batch() -> None:
    plan = make_plan()
    sizes = plan.largest_batch("240kB")
    assert f"has {max(sizes.values())} samples, by " in plan.describe()
    assert f"(end-to-end: {sizes[plan.plain]})" in plan.describe()


def build_with_norm() -> nn.Sequential:
    return nn.Sequential(build_rows(), nn.BatchNorm1d(10))


@pytest.mark.parametrize(
    ("build", "budget", "lever"),
    [
        (build_with_norm, "150kB", "micro-batches, which change what BatchNorm sees"),
        (build_rows, "100kB", "micro-batches."),
        (build_rows, "40kB", "Of the 512 samples of the batch, "),
        (build_rows, "5kB", "Most of that, "),
    ],
)
def test_what_would_make_it_fit(build: type[nn.Module], budget: str, lever: str) -> None:
    found = lp.plan(build(), BATCH, budget=budget, optimizer=adamw, methods=(), microbatches=(1,))
    assert found.best is None
    assert lever in found.describe()
