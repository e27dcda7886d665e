"""A plan that is read again: the run that it describes, contradictions, and damaged files."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import localprop as lp
from localprop.cli.main import main
from localprop.training.plan_file import read_plan
from tests.helpers.plans import make_hand_plan

RUN = ["train", "--data", "digits", "--epochs", "2", "--limit", "200"]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    make_hand_plan().save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def change(path: Path, *keys: str, value: Any) -> None:
    """Change an entry of a file."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_training_by_a_plan(plan: Path, tmp_path: Path) -> None:
    assert main([*RUN, "--plan", str(plan), "--out", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    wanted = {"model": "mlp", "method": "greedy", "modules": 2, "batch_size": 32}
    assert {name: config[name] for name in wanted} == wanted


def test_flags_that_contradict_are_refused_at_once(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--method backlink --modules 3 --model resnet8 --precision bf16 --cuts 1 --replicas 2"
    more = "--recompute --microbatches 2 --batch-size 64 --optimizer adam"
    flags = shlex.split(f"{words} {more}")
    assert main([*RUN, "--plan", str(plan), *flags]) == 2
    problems = capsys.readouterr().err.splitlines()[1:]
    named = {line.removeprefix("- ").partition("=")[0] for line in problems}
    assert named == {flag[2:].replace("-", "_") for flag in flags if flag.startswith("--")}


def test_flags_that_agree_are_taken(plan: Path) -> None:
    given = {"method": "greedy()", "modules": 2, "batch_size": 32, "seed": 3}
    assert read_plan(plan).merge(given) == {**read_plan(plan).fields, **given}


def test_data_of_another_shape(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_hand_plan(input_shape=(3, 8, 8), classes=100).save(plan)
    assert main([*RUN, "--plan", str(plan)]) == 2
    problems = capsys.readouterr().err
    assert "--input 1,8,8" in problems
    assert "--classes 10" in problems


def test_recipes_and_resumed_runs_have_their_own_values(plan: Path) -> None:
    with pytest.raises(lp.BadInput) as caught:
        lp.train("resnet32_cifar10_backlink_k16", plan=plan, resume=True, out="run")
    assert len(caught.value.problems) == 2


def test_a_plan_without_a_best_way(plan: Path) -> None:
    make_hand_plan(budget=None).save(plan)
    with pytest.raises(lp.BadInput, match="larger --budget"):
        read_plan(plan)


def test_a_file_imports_nothing_by_itself(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plan.parent / "hostile_plan.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(plan.parent)
    change(plan, "best", "method", value="hostile_plan:method()")
    with pytest.raises(lp.BadInput, match="name it yourself, with --method"):
        lp.train(plan=plan, epochs=2)
    change(plan, "best", "method", value="greedy(aux=hostile_plan:Head())")
    with pytest.raises(lp.BadInput, match="name it yourself, with --method"):
        lp.train(plan=plan, epochs=2)
    change(plan, "best", "method", value="greedy()")
    change(plan, "made_for", "model", value=f"{plan.parent}/hostile_plan.py:make")
    with pytest.raises(lp.BadInput, match="name it yourself, with --model"):
        lp.train(plan=plan, epochs=2)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is damaged"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"{", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"1" * 5_000, "is damaged"),
        (b'{"format": "localprop plan 1", "best": ', "is damaged"),
        (b" " * (2**24 + 1), "more than 16 MiB"),
        (b"[]", "but a list"),
        (b"{}", "no plan of this version"),
        (b'{"format": "localprop plan 1"}', "no best way"),
        (b'{"format": "localprop plan 1", "best": 3}', "best lacks method, learner"),
        (b'{"format": "localprop plan 1", "best": {}, "made_for": 1}', "made_for lacks model"),
    ],
)
def test_damaged_files(content: bytes, problem: str, plan: Path) -> None:
    plan.write_bytes(content)
    with pytest.raises(lp.BadInput, match=problem):
        read_plan(plan)


def test_files_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(lp.BadInput, match="cannot be read"):
            read_plan(path)


@pytest.mark.parametrize(
    ("keys", "value", "problem"),
    [
        (("best", "method"), 3, "method=3"),
        (("best", "method"), "greedy(", "cannot be read"),
        (("best", "method"), "no_such", "no method or part 'no_such'"),
        (("best", "learner"), [], "learner is"),
        (("best", "learner", "modules"), "two", "modules='two'"),
        (("best", "learner", "modules"), True, "modules=True"),
        (("best", "learner", "microbatches"), -1, "microbatches=-1"),
        (("best", "learner", "recompute"), {"a": 1}, "recompute={'a': 1}"),
        (("best", "learner", "offload"), 1, "offload=1"),
        (("best", "learner", "paged"), True, "has paged"),
        (("made_for", "model"), None, "model=None"),
        (("made_for", "batch_size"), float("nan"), "batch_size=nan"),
        (("made_for", "input_shape"), "1,8,8", "input_shape is 1,8,8"),
        (("made_for", "classes"), "ten", "classes is ten"),
        (("made_for", "ranks"), 0, "ranks is 0"),
        (("made_for", "optimizer"), "lion", "optimizer='lion'"),
    ],
)
def test_damaged_values(keys: tuple[str, ...], value: Any, problem: str, plan: Path) -> None:
    change(plan, *keys, value=value)
    with pytest.raises(lp.BadInput) as caught:
        read_plan(plan)
    assert any(problem in each for each in caught.value.problems)


def test_layers_that_run_again_by_name(plan: Path) -> None:
    change(plan, "best", "learner", "recompute", value=["layers.0", "layers.2"])
    assert read_plan(plan).fields["recompute"] == "layers.0,layers.2"
