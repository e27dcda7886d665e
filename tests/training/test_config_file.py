"""Configs from files: a run repeated from its own, and TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import localprop as lp
from localprop.errors import BadInput
from localprop.training.config_file import read_config_file
from tests.helpers.cli import QUICK, read_epochs, read_json, run_command, run_train

SMALL: dict[str, Any] = {"model": "mlp:8", "epochs": 2, "limit": 60, "device": "cpu"}


def test_a_run_is_repeated_from_its_own_file(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert run_train("--method", "backlink(weight=0.5)", "--seed", 3, "--out", one) == 0
    words = ["--config", one / "config.json", "--out", other]
    assert run_train(*words, quick=False) == 0
    assert read_json(other / "config.json") == read_json(one / "config.json")
    assert read_epochs(other) == read_epochs(one)


def test_flags_win_over_the_file_and_drop_what_excludes_them(tmp_path: Path) -> None:
    assert run_train("--out", tmp_path / "one", "--warmup-epochs", 2) == 0
    summary = lp.train(config=tmp_path / "one", epochs=1, lr=0.05, cuts=(0,))
    config = summary["config"]
    assert (config["epochs"], config["lr"], config["cuts"]) == (1, 0.05, (0,))
    assert (config["model"], config["modules"], config["warmup_epochs"]) == ("mlp:16", 2, 0)


def test_toml(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('model = "mlp:8"\nepochs = 2\nlimit = 60\nmean = [0.5]\nstd = [0.5]\n')
    assert lp.train(config=file)["config"]["mean"] == (0.5,)
    file.write_text("epoch = 2\nnonsense = 1\n")
    with pytest.raises(BadInput) as caught:
        read_config_file(file)
    assert "did you mean epochs?" in str(caught.value)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "lr = ", "is damaged"),
        ("a.json", "[1]", "holds no fields"),
        ("a.yaml", "lr: 1", "must end in .toml or .json"),
        ("a.toml", "lr = 'high'", "lr='high' is a str"),
        ("a.toml", "", "both name a run"),
    ],
)
def test_bad_files_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    recipe = ["resnet32_cifar10_dgl_k4"] if "both" in message else []
    code, _, err = run_command(capsys, "train", *recipe, "--config", str(tmp_path / name))
    assert (code, message in err) == (2, True), err
    assert "Traceback" not in err


def test_compare_holds_out_a_tenth_where_the_file_holds_out_nothing(tmp_path: Path) -> None:
    """As the runs of most recipes, whose images are all trained on."""
    out = tmp_path / "one"
    assert run_train(*QUICK, "--validation", 0, "--out", out, quick=False) == 0
    assert read_json(out / "summary.json")["validation_accuracy"] is None
    notes: list[str] = []
    options: dict[str, Any] = {"seeds": 1, "rounds": 2, "on_note": notes.append}
    result = lp.compare(["greedy()"], config=out, out=str(tmp_path / "c"), epochs=1, **options)
    assert result["config"]["validation"] == 0.1
    assert "validation=0: 0.1 of the images is held out" in notes[0]
    summary = read_json(tmp_path / "c" / "greedy" / "seed-0" / "summary.json")
    assert summary["epochs"][0]["exit_accuracies"]
