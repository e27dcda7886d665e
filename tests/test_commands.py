"""The commands as functions: the same options, callbacks and refusals as the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import localprop as lp

ROOT = Path(__file__).parent.parent
SMALL: dict[str, Any] = {"model": "mlp", "limit": 200, "epochs": 2}


def test_train_takes_a_rule_and_calls_back(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    reports: list[lp.EpochReport] = []
    steps: list[tuple[int, int, int]] = []
    summary = lp.train(
        out=out,
        method=lp.backlink(layers=2),
        on_epoch=reports.append,
        on_step=lambda *numbers: steps.append(numbers),
        **SMALL,
    )
    assert [report.epoch for report in reports] == [1, 2]
    assert steps[0][:2] == (1, 1)
    assert steps[-1][0] == 2
    assert summary["config"]["method"].startswith("Rule(credit=BackwardLinks(layers=2)")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written == json.loads(json.dumps(summary["config"]))


def test_a_config_is_read_from_its_json(tmp_path: Path) -> None:
    lp.train(
        out=str(tmp_path / "run"),
        method=lp.greedy(),
        cuts=(0, 1),
        milestones=(1,),
        lr_schedule="multistep",
        **SMALL,
    )
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    config = lp.Config(**values)
    assert config.find_problems() == []
    assert (config.cuts, config.milestones) == ((0, 1), (1,))
    assert config.as_json() == json.loads(json.dumps(values), object_hook=_with_tuples)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def test_a_run_goes_on_with_the_same_method_written_otherwise(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    first = lp.train(out=out, method=lp.backlink(), **SMALL)
    again = lp.train(out=out, resume=True, method="backlink(layers=1)")
    assert again["epochs"] == first["epochs"]
    with pytest.raises(lp.BadInput, match="backlink\\(layers=2\\)"):
        lp.train(out=out, resume=True, method="backlink(layers=2)")


def test_compare_takes_rules_texts_and_labels() -> None:
    settings = {**SMALL, "seeds": 1, "rounds": 2}
    named = lp.compare({"global": "end_to_end()", "mine": lp.greedy()}, **settings)
    assert [row["method"] for row in named["rows"]] == ["global", "mine"]
    listed = lp.compare([lp.backlink(layers=2), "greedy() with recompute"], **settings)
    assert [row["method"] for row in listed["rows"]] == [
        "Rule(credit=BackwardLinks(layers=2))",
        "greedy() with recompute",
    ]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lp.train(model="mlp", epoch=2), "did you mean epochs"),
        (lambda: lp.train(model="mlp", method=3, epochs=2), "a text or a Rule"),
        (lambda: lp.compare(["greedy()"], method="greedy()"), "no field 'method' here"),
        (lambda: lp.compare(["greedy()"], task="sound"), "choose images or lm"),
        (lambda: lp.train("resnet32_cifar10_dgl_k15"), "did you mean"),
        (lambda: lp.train(optimizer="adam", nesterov=True), "nesterov has no effect"),
    ],
)
def test_refusals(call: Any, words: str) -> None:
    with pytest.raises(lp.BadInput, match=words):
        call()


def test_recipes_are_found_and_trained() -> None:
    found = lp.recipes("vgg19_imagenet_dgl_k")
    assert [recipe.name for recipe in found] == [
        "vgg19_imagenet_dgl_k2",
        "vgg19_imagenet_dgl_k4",
    ]
    assert len(lp.recipes()) > 500
    recipe = lp.recipes("transformer_text_solo_k2")[0]
    said: list[str] = []
    small: dict[str, Any] = {
        "model": "transformer:width=16,heads=2,blocks=2",
        "context": 16,
        "limit": 64,
    }
    summary = lp.train(recipe, epochs=2, on_note=said.append, **small)
    assert summary["recipe"] == "transformer_text_solo_k2"
    assert {*summary["replaced"]} >= {"model", "epochs"}


def test_type_checkers_refuse_unknown_names(tmp_path: Path) -> None:
    file = tmp_path / "user.py"
    file.write_text(
        "import localprop as lp\nlp.Learner\nlp.train\nlp.compare\nlp.recipes\nlp.save\nlp.load\n"
        "lp.make_table\nlp.Config\nlp.Lerner\n"
    )
    # In the checkout, where the cache of `make lint` has what mypy found in torch.
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
    )
    errors = [line for line in checked.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1, checked.stdout
    assert 'has no attribute "Lerner"' in errors[0]
