"""`localprop compare` when a run fails or the comparison ends early: finished runs are kept."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from localprop.errors import BadInput, RunFailed
from localprop.training.scores import Score
from tests.helpers.cli import run_command

FLAGS = "--model mlp:8 --epochs 2 --limit 40 --batch-size 8 --rounds 2 --device cpu --seeds 2"
COMMAND = ["compare", *FLAGS.split()]
BAD = "bad: backlink(weight=1e38)"  # its loss is not finite


def replace_runs(monkeypatch: pytest.MonkeyPatch, ends: Sequence[Score | BaseException]) -> None:
    """Let the runs of a comparison end with these scores and exceptions, one after the other."""
    remaining = iter(ends)

    def end_run(*_: object) -> Score:
        end = next(remaining)
        if isinstance(end, BaseException):
            raise end
        return end

    monkeypatch.setattr("localprop.report.compare._train_and_score", end_run)


def test_a_failed_run_is_marked_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    methods = ["greedy()", BAD, "end_to_end()"]
    code, _, err = run_command(capsys, *COMMAND, "--out", str(tmp_path), "--methods", *methods)
    assert code == 1
    assert "- 2 of 6 runs failed" in err
    assert "| bad          |       2 | 2 of 2 failed | " in err
    assert re.search(r"Failed: bad, seed 2 of 2: The .*loss.* is (nan|inf) ", err)
    figures = json.loads((tmp_path / "compare.json").read_text())
    before, bad, after = figures["rows"]
    assert figures["runs_left"] == 0
    assert bad["accuracy_mean"] is None
    assert bad["accuracies"] == bad["losses"] == [None, None]
    runs = [failure.split(":")[0] for failure in bad["failures"]]
    assert runs == ["bad, seed 1 of 2", "bad, seed 2 of 2"]
    assert min(before["accuracy_mean"], after["accuracy_mean"]) > 0
    assert before["failures"] == after["failures"] == []


def test_a_method_with_a_failed_run_has_no_mean(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ends: list[Score | BaseException] = [
        Score(0.5, 1.0),
        MemoryError("no room"),
        Score(0.7, 2.0),
        Score(0.9, 3.0),
    ]
    replace_runs(monkeypatch, ends)
    words = [*COMMAND, "--out", str(tmp_path), "--methods", "greedy()", "end_to_end()"]
    code, _, err = run_command(capsys, *words)
    assert code == 1
    assert "Failed: greedy(), seed 2 of 2: no room (a smaller model or batch may fit)" in err
    half, whole = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert half["accuracies"] == [50, None]
    assert half["accuracy_mean"] is half["accuracy_std"] is None
    assert (whole["accuracy_mean"], whole["loss_mean"]) == (80, 2.5)
    assert re.search(r"\| greedy\(\) +\| +2 \| +1 of 2 failed \| +- \|", err)
    assert re.search(r"\| end_to_end\(\) +\| +1 \| +80\.00 \+- 14\.14 \| +- \|", err)


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt(), 130), (BadInput("gone."), 2)])
def test_an_early_end_keeps_the_finished_runs(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    end: BaseException,
    code: int,
) -> None:
    replace_runs(monkeypatch, [Score(0.5, 1.0), Score(0.7, 2.0), Score(0.9, 3.0), end])
    words = [*COMMAND, "--out", str(tmp_path / "r"), "--methods", "greedy()", "end_to_end()"]
    exit_code, out, err = run_command(capsys, *words)
    assert (exit_code, out) == (code, "")
    figures = json.loads((tmp_path / "r" / "compare.json").read_text())
    assert [row["accuracies"] for row in figures["rows"]] == [[50, 70], [90]]
    assert figures["runs_left"] == 1
    assert "| end_to_end(), 1 of 2 seeds | " in err
    assert "Unfinished runs: 1." in err


def test_a_full_disk_ends_a_comparison_with_its_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[object] = []

    def fill(*_: object) -> None:
        written.append(_)
        if len(written) > 1:  # the costs have room, the first run has not
            raise RunFailed("The disk is full.")

    monkeypatch.setattr("localprop.report.comparison_directory.write_text", fill)
    words = [*COMMAND, "--out", str(tmp_path), "--methods", "greedy()"]
    code, _, err = run_command(capsys, *words)
    assert code == 1
    assert "| greedy(), 1 of 2 seeds | " in err
    assert "- The disk is full." in err


def test_a_directory_that_cannot_be_created_is_reported_before_the_first_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", refuse)
    words = [*COMMAND, "--out", str(tmp_path / "r"), "--methods", "greedy()"]
    code, _, err = run_command(capsys, *words)
    assert code == 2
    assert "cannot be created (No space left on device): choose another --out." in err
    assert "measuring" not in err
