"""The argument RECIPE of `train` and `show`: overrides, results and resumed runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from localprop import experiments
from localprop.experiments import fields_of
from localprop.training.config import Config
from tests.helpers.cli import read_json, run_command

# A language model that trains in seconds.
SMALL_FLAGS = "--model transformer:width=16,heads=2,blocks=1 --context 16 --limit 64 --epochs 2"
SMALL = SMALL_FLAGS.split()


@pytest.mark.parametrize("command", ["train", "show"])
def test_an_unknown_recipe_exits_with_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_command(capsys, command, "resnet32_cifar10_dgl_k15")
    assert (code, out) == (2, "")
    assert "did you mean resnet32_cifar10_dgl_k16" in err


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("resnet32_cifar10_backlink_k16", 2),
        ("vgg8b_cifar10_e2e", 1),
        ("vgg8b_cifar10_e2e", 5),
        ("vgg13_imagenet_dgl_k4", 2),
        ("resnet32_cifar10_dgl_k4", 5),
        ("resnet32_cifar10_pgl_k4", 2),
        ("resnet101_cifar100_trgl_sequential_k2", 3),
    ],
)
def test_fewer_epochs_alone_are_a_sound_run(name: str, epochs: int) -> None:
    recipe = experiments.find(name)
    assert replace(recipe.config, epochs=epochs).find_problems()
    said: list[str] = []
    assert Config(**fields_of(name, {"epochs": epochs}, said.append)).find_problems() == []
    assert said
    assert all(f"does not fit epochs={epochs}: " in sentence for sentence in said)


def test_train_a_recipe_with_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--modules 2 --data digits --limit 60 --epochs 1 --lr-schedule constant --batch-size 30"
    words = ["train", "resnet32_cifar10_backlink_k16", *flags.split()]
    code, out, _ = run_command(capsys, *words)
    assert code == 0
    score, published = out.splitlines()
    assert score.startswith("test accuracy 0.")
    assert published.startswith(
        "published, not claimed for this recipe, which is in part our reading: +4.00"
    )
    assert published.endswith(
        "; this run replaces data, modules, cuts, epochs, batch_size, lr_schedule, warmup_epochs, "
        "warmup_from, limit"
    )


def test_train_a_recipe_to_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out_flags = ["--out", str(tmp_path), "--device", "cpu"]
    words = ["train", "transformer_text_solo_k2", "--json", *SMALL, *out_flags]
    code, out, _ = run_command(capsys, *words)
    assert code == 0
    found = json.loads(out)
    assert found["recipe"] == "transformer_text_solo_k2"
    assert found["config"]["optimizer"] == "adamw"
    assert found["config"]["context"] == 16
    replaced = {*found["replaced"]}
    assert {"model", "context", "limit"} <= replaced
    assert replaced <= {"model", "epochs", "context", "limit", "warmup_epochs"}
    kept = read_json(tmp_path / "summary.json")
    assert (kept["recipe"], kept["replaced"]) == ("transformer_text_solo_k2", found["replaced"])
    for more in ([], ["transformer_text_solo_k2"], ["transformer_text_solo_k2", *SMALL]):
        code, out, _ = run_command(capsys, "train", *more, *out_flags, "--resume", "--json")
        assert code == 0
        resumed = json.loads(out)
        assert all(resumed[key] == found[key] for key in ("recipe", "replaced", "paper", "notes"))
    words = ["train", "transformer_text_solo_k4", "--out", str(tmp_path), "--resume"]
    code, _, err = run_command(capsys, *words)
    assert code == 2
    assert "is of transformer_text_solo_k2, not of transformer_text_solo_k4" in err
