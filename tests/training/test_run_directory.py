"""Run directories: what a run leaves on the disk, and what is never overwritten."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers.cli import FILES, names_in, read_json, run_train


def test_a_run_leaves_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    assert run_train("--out", folder, "--method", "greedy") == 0
    assert names_in(folder) == FILES
    config = read_json(folder / "config.json")
    expected = {"method": "greedy", "modules": 2, "warmup_epochs": 0, "limit": 100}
    assert {name: config[name] for name in expected} == expected
    assert config["device"] != "auto"
    env = read_json(folder / "env.json")
    known = {"python", "torch", "localprop", "accelerator", "threads", "commit", "command"}
    assert env.keys() >= known
    summary = read_json(folder / "summary.json")
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics == summary["epochs"]
    assert summary["rule"].startswith("Rule(credit=LocalCredit(")
    assert summary["test_loss"] > 0
    assert summary["validation_loss"] == metrics[-1]["validation_loss"]


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_train("--out", "~/run") == 0
    assert names_in(tmp_path / "run") == FILES


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    assert run_train("--out", tmp_path / "run", "--model", "nope") == 2
    assert names_in(tmp_path) == []


def test_options_that_the_data_refuse_leave_nothing_behind(tmp_path: Path) -> None:
    assert run_train("--out", tmp_path / "run", "--augment", "cutout") == 2
    assert names_in(tmp_path) == []


def test_an_existing_run_is_kept_unless_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train("--out", tmp_path) == 0
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    assert run_train("--out", tmp_path, "--lr", -1) == 2
    assert capsys.readouterr().err.count("\n- ") == 2
    assert run_train("--out", tmp_path, "--overwrite", "--lr", -1) == 2
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before
    (tmp_path / "notes.txt").write_text("mine")
    assert run_train("--out", tmp_path, "--overwrite", "--seed", 1) == 0
    assert names_in(tmp_path) == sorted([*FILES, "notes.txt"])
    assert read_json(tmp_path / "config.json")["seed"] == 1


def test_a_directory_of_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert run_train("--out", tmp_path, "--overwrite") == 2
    assert run_train("--out", tmp_path / "thesis.tex", "--overwrite") == 2
    assert run_train("--out", tmp_path / "thesis.tex" / "run") == 2
    assert names_in(tmp_path) == ["thesis.tex"]


def test_a_run_that_diverges_exits_1_and_leaves_complete_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train("--lr", "1e30", "--out", tmp_path / "run") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "epoch 1, step 2" in err
    assert names_in(tmp_path / "run") == ["config.json", "env.json"]


def test_a_full_disk_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "metrics.jsonl":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert run_train("--out", tmp_path) == 1
    assert "No space left" in capsys.readouterr().err
    assert names_in(tmp_path) == ["config.json", "env.json"]
