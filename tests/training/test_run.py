"""Resumed runs: equal to the undisturbed run, and refused where they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localprop.training.run_directory import RunDirectory
from localprop.training.trainer import EpochReport
from tests.helpers.cli import FILES, names_in, read_epochs, read_json, remove_checkpoints, run_train


def run_until(folder: Path, monkeypatch: pytest.MonkeyPatch, *, epoch: int, at: str) -> None:
    """Start a run that Ctrl-C ends in the given epoch, before or after the epoch is saved."""
    save_epoch = RunDirectory.save_epoch

    def save_and_stop(self: RunDirectory, report: EpochReport, *learners: Any) -> None:
        if report.epoch == epoch and at == "before":
            raise KeyboardInterrupt
        save_epoch(self, report, *learners)
        if report.epoch == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_epoch", save_and_stop)
        assert run_train("--out", folder) == 130


@pytest.mark.parametrize(
    ("epoch", "at"), [(1, "before"), (1, "after"), (2, "after"), (3, "before"), (3, "after")]
)
def test_a_resumed_run_is_the_undisturbed_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
    at: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_train("--out", whole) == 0
    run_until(broken, monkeypatch, epoch=epoch, at=at)
    assert "--resume" in capsys.readouterr().err
    assert "summary.json" not in names_in(broken)
    assert run_train("--out", broken, "--resume", quick=False) == 0
    assert names_in(broken) == FILES
    assert read_epochs(broken) == read_epochs(whole)
    assert (
        read_json(broken / "summary.json")["test_accuracy"]
        == read_json(whole / "summary.json")["test_accuracy"]
    )
    assert len((broken / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_with_tuples_is_resumed(tmp_path: Path) -> None:
    words = "--model resnet8 --limit 60 --epochs 2 --cuts 0,2 --mean 0.5 --std 0.5"
    words += " --lr-schedule multistep --milestones 1"
    assert run_train(*words.split(), "--out", tmp_path, quick=False) == 0
    whole = read_epochs(tmp_path)
    remove_checkpoints(tmp_path)
    assert run_train("--out", tmp_path, "--resume", "--cuts", "0,2", quick=False) == 0
    assert read_epochs(tmp_path) == whole
    assert run_train("--out", tmp_path, "--resume", "--cuts", "0", quick=False) == 2


def test_a_report_without_a_checkpoint_is_dropped(tmp_path: Path) -> None:
    assert run_train("--out", tmp_path) == 0
    before = read_epochs(tmp_path)
    remove_checkpoints(tmp_path)
    assert run_train("--out", tmp_path, "--resume", quick=False) == 0
    assert read_epochs(tmp_path) == before


def test_a_resumed_run_refuses_other_values_but_takes_another_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train("--out", tmp_path) == 0
    assert run_train("--out", tmp_path, "--resume", "--lr", "0.2", "--seed", "3", quick=False) == 2
    assert capsys.readouterr().err.count("\n- ") == 2
    assert (
        run_train("--out", tmp_path, "--resume", "--device", "cpu", "--epochs", "3", quick=False)
        == 0
    )


def test_a_directory_without_a_run_is_not_resumed(tmp_path: Path) -> None:
    assert run_train("--out", tmp_path / "none", "--resume") == 2
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"nope": 1}'),
        ("config.json", '{"lr": "x"}'),
        ("config.json", "\udcff"),
    ],
)
def test_a_damaged_run_is_not_resumed(
    tmp_path: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train("--out", tmp_path) == 0
    capsys.readouterr()
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    assert run_train("--out", tmp_path, "--resume", quick=False) == 2
    err = capsys.readouterr().err
    assert name in err or "lr='x'" in err
