"""What is chosen fits, when it is executed, too; all budgets are looked up in one front."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import localprop as lp
from localprop.cli.main import main
from localprop.cost.fake_engine import list_held_tensors
from localprop.cost.memory import measure_peak
from localprop.planning.sizes import read_size
from localprop.tasks.batch import Batch
from tests.helpers.networks_with_skips import UNet

# One worker makes each plan once.
pytestmark = pytest.mark.xdist_group("plan")

IMAGES = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
ROWS = torch.randn(512, 48), torch.randint(10, (512,))
MODELS: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "resnet8": (lp.models.resnet8, IMAGES, None),
    "mlp": (lambda: lp.models.mlp(48, (64,) * 5), ROWS, None),
}


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


METHODS = {"resnet8": ("greedy", "backlink"), "mlp": ("greedy",)}


@cache
def make_plan(name: str, budget: str | None = None) -> lp.Plan:
    build, batch, task = MODELS[name]
    return lp.plan(
        build(), batch, budget=budget, optimizer=adamw, task=task, methods=METHODS[name],
        microbatches=(1, 4),
    )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_smaller_budget_gets_no_larger_peak_and_a_larger_one_no_slower_way(name: str) -> None:
    found = make_plan(name)
    before = None
    for percent in range(1, 130):
        way = found.fit(max(1, found.plain.peak_bytes * percent // 100))
        if way is None:
            assert before is None
            continue
        assert way.peak_bytes < found.plain.peak_bytes * percent // 100
        if before is not None:
            assert way.peak_bytes >= before.peak_bytes
            assert way.time <= before.time
        before = way
    assert before is not None
    assert before.time <= 1


@pytest.mark.parametrize(("name", "percent"), [("resnet8", 40), ("mlp", 40)])
def test_what_is_chosen_stays_within_its_budget(name: str, percent: int) -> None:
    build, batch, task = MODELS[name]
    budget = make_plan(name).plain.peak_bytes * percent // 100
    best = make_plan(name, f"{budget}B").best
    if best is None:
        assert make_plan(name).front[0].peak_bytes > budget * 0.99
        return
    assert best.confirmed
    model = build()
    learner = lp.Learner(model, **best.kwargs, optimizer=adamw, sample=batch, task=task)
    learner.step(batch)
    held = list_held_tensors(
        (model, learner.heads), learner.engine.optimizers.all(), Batch.of(batch)
    )
    read = measure_peak(lambda: learner.step(batch), held, torch.device("cpu"))
    assert read.peak_bytes <= budget
    assert read.peak_bytes == pytest.approx(best.peak_bytes, rel=1e-3)


def test_a_model_without_data_gets_the_same_plan() -> None:
    with torch.device("meta"):
        model = lp.models.resnet8()
    found = lp.plan(model, IMAGES, optimizer=adamw, methods=METHODS["resnet8"])
    assert [way.peak_bytes for way in found.front] == [
        way.peak_bytes for way in make_plan("resnet8").front
    ]


def test_stretches_that_are_executed_take_what_was_planned() -> None:
    batch = torch.zeros(512, 48), torch.zeros(512, dtype=torch.long)

    def build() -> nn.Module:
        return lp.models.mlp(48, (64,) * 14)

    found = lp.plan(build(), batch, optimizer=adamw, methods=("greedy",))
    own = [w for w in found.ways if w.method == "end_to_end" and w.microbatches == 1]
    assert {way.rerun for way in own} >= {"no", "all", "1 of 2", "stretches", "nested"}
    chosen = [way for way in own if way.rerun in ("stretches", "nested")]
    # What is chosen is never worse than what people write by hand.
    for way in own:
        assert any(
            other.peak_bytes <= 1.01 * way.peak_bytes and other.time <= way.time + 0.01
            for other in (found.plain, *chosen)
        ), way
    # The deepest of each kind, and one in modules.
    inner = [w for w in found.ways if w.method == "greedy" and w.rerun == "stretches"]
    for ways in ([w for w in chosen if w.rerun == k] for k in ("stretches", "nested")):
        inner.append(min(ways, key=lambda way: way.peak_bytes))
    for way in inner[-3:]:
        learner = lp.Learner(build(), **way.kwargs, optimizer=adamw, sample=batch)
        assert learner.memory().peak_bytes == pytest.approx(way.peak_bytes, rel=1e-3)
        assert learner.flops(batch) == pytest.approx(way.flops, rel=1e-2)


def test_times_are_measured_beside_the_plain_loop() -> None:
    batch = torch.randn(64, 48), torch.randint(10, (64,))
    torch.manual_seed(0)
    model = lp.models.mlp(48, (64, 64, 64))
    before = [parameter.clone() for parameter in model.parameters()]
    found = lp.plan(model, batch, methods=("greedy",), microbatches=(1, 2), measure=True)
    rows = found.as_json()["rows"]
    assert rows[0]["measured_time"] == 1
    assert all(row["measured_time"] > 0 for row in rows)
    assert "measured" in str(found).splitlines()[0]
    assert "steps of 64 samples" in str(found)
    assert all(map(torch.equal, model.parameters(), before))
    with pytest.raises(lp.BadInput, match="a model and a batch with data"):
        lp.plan(model.to("meta"), batch, methods=(), microbatches=(1,), measure=True)


def test_micro_batches_are_left_out_where_they_change_the_result() -> None:
    assert all(way.microbatches == 1 for way in make_plan("resnet8").ways)
    assert any("BatchNorm" in note for note in make_plan("resnet8").notes)
    assert any(way.microbatches == 4 for way in make_plan("mlp").ways)
    split = lp.plan(lp.models.resnet8(), IMAGES, methods=(), split_batch_norm=True)
    assert {way.splits_batch_norm for way in split.ways if way.microbatches > 1} == {True}


def test_a_network_with_skips_is_read_by_the_engine() -> None:
    batch = torch.randn(4, 3, 16, 16), torch.randint(4, (4, 16, 16))
    options: dict[str, Any] = {"optimizer": adamw, "task": lp.Segmentation()}
    found = lp.plan(UNet(), batch, methods=("greedy",), **options)
    assert all(way.confirmed for way in found.ways)
    assert {way.modules for way in found.ways if way.method == "greedy"} == {2, 4}
    for way in found.ways:
        learner = lp.Learner(UNet(), **way.kwargs, sample=batch, **options)
        assert learner.memory().peak_bytes == way.peak_bytes


@pytest.mark.parametrize("samples", [2, 3])
def test_tiny_batches(samples: int) -> None:
    batch = tuple(each[:samples] for each in ROWS)
    build, _, task = MODELS["mlp"]
    found = lp.plan(build(), batch, optimizer=adamw, task=task, methods=())
    assert max(way.microbatches for way in found.ways) == samples - samples % 2


def test_where_the_plain_loop_fits_it_is_taken_unless_a_method_is_faster() -> None:
    for name in MODELS:
        found = make_plan(name)
        best = found.fit(2 * found.plain.peak_bytes)
        assert best is not None
        assert best == found.plain or best.time < 1


def test_what_to_do_where_nothing_fits() -> None:
    found = make_plan("resnet8", "1MB")
    assert found.best is None
    assert "Nothing fits 1.0 MB" in found.describe()
    smallest = found.describe().split("the smallest budget is ")[1].split(", by ")[0]
    assert make_plan("resnet8").fit(read_size(smallest) + 10**5) is not None


def test_methods_that_cannot_train_the_network_are_named() -> None:
    found = lp.plan(lp.models.mlp(3072), IMAGES, methods=("trgl()", lp.greedy()))
    assert any(note.startswith("trgl() is left out: ") for note in found.notes)
    assert {way.method for way in found.ways} == {"end_to_end", repr(lp.greedy())}


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("8 g", 8 * 10**9), ("1.5MiB", 3 * 2**19), ("700", 700), (5, 5)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "8X", "-1GB", "GB", "1iB", 0, True, 2.5, None])
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(lp.BadInput, match="is no size: write bytes, or a text such as '8GB'"):
        read_size(text)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "mlp:64,64,64", "--input", "16", "--methods", "greedy"]
    assert main([*words, "--budget", "300kB", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["best"]["peak_bytes"] < 300e3
    assert main([*words, "--budget", "300kB"]) == 0
    assert "peak" in capsys.readouterr().out
    assert main([*words, "--budget", "lots", "--optimizer", "foo", "--batch", "0"]) == 2
    problems = capsys.readouterr().err
    assert all(word in problems for word in ("budget='lots'", "optimizer='foo'", "batch=0"))
