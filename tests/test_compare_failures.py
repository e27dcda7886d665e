"""`localprop compare` when a run fails, or when it is ended before its last run: what is there is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from localprop.cli import main
from localprop.errors import BadInput, RunFailed
from localprop.training.trainer import Score

TINY = ["--model", "mlp:8", "--epochs", "2", "--limit", "40", "--batch-size", "8", "--rounds", "2", "--device", "cpu"]
BAD = "bad: backlink(weight=1e38)"  # its loss is not finite


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_failed_run_is_marked_and_the_others_go_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["compare", *TINY, "--seeds", "2", "--out", str(tmp_path), "--methods", "greedy()", BAD, "end_to_end()"]
    code, _, err = run(capsys, *words)
    assert code == 1
    assert "- 2 of 6 runs failed" in err
    assert "| bad          |       2 | 2 of 2 failed | " in err
    assert re.search(r"Failed: bad, seed 2 of 2: The .*loss.* is (nan|inf) ", err)
    found = json.loads((tmp_path / "compare.json").read_text())
    before, bad, after = found["rows"]
    assert (found["runs_left"], bad["accuracy_mean"], bad["accuracies"], bad["losses"]) == (
        0,
        None,
        [None] * 2,
        [None] * 2,
    )
    assert [failure.split(":")[0] for failure in bad["failures"]] == ["bad, seed 1 of 2", "bad, seed 2 of 2"]
    assert min(before["accuracy_mean"], after["accuracy_mean"]) > 0
    assert before["failures"] == after["failures"] == []


def test_the_mean_of_a_method_is_not_that_of_the_runs_that_went_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ends = iter([Score(0.5, 1.0), MemoryError("no room"), Score(0.7, 2.0), Score(0.9, 3.0)])
    monkeypatch.setattr("localprop.report.compare._score", lambda *_: _end(next(ends)))
    words = ["compare", *TINY, "--seeds", "2", "--out", str(tmp_path), "--methods", "greedy()", "end_to_end()"]
    code, _, err = run(capsys, *words)
    assert code == 1
    assert "Failed: greedy(), seed 2 of 2: no room (a smaller model or batch may fit)" in err
    half, whole = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert (half["accuracies"], half["accuracy_mean"], half["accuracy_std"]) == ([50, None], None, None)
    assert (whole["accuracy_mean"], whole["loss_mean"]) == (80, 2.5)
    assert re.search(r"\| greedy\(\) +\| +2 \| +1 of 2 failed \| +- \|", err)
    assert re.search(r"\| end_to_end\(\) +\| +1 \| +80\.00 \+- 14\.14 \| +- \|", err)


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt(), 130), (BadInput("gone."), 2)])
def test_what_ends_a_comparison_keeps_the_runs_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: BaseException, code: int
) -> None:
    ends = iter([Score(0.5, 1.0), Score(0.7, 2.0), Score(0.9, 3.0), end])
    monkeypatch.setattr("localprop.report.compare._score", lambda *_: _end(next(ends)))
    words = ["compare", *TINY, "--seeds", "2", "--out", str(tmp_path / "r"), "--methods", "greedy()", "end_to_end()"]
    ended, out, err = run(capsys, *words)
    assert (ended, out) == (code, "")
    found = json.loads((tmp_path / "r" / "compare.json").read_text())
    assert ([row["accuracies"] for row in found["rows"]], found["runs_left"]) == ([[50, 70], [90]], 1)
    assert "| end_to_end(), 1 of 2 seeds | " in err
    assert "Runs that have not ended: 1." in err


def test_a_disk_that_refuses_ends_a_comparison_with_its_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise RunFailed("The disk is full.")

    monkeypatch.setattr("localprop.cli_compare.write_text", refuse)
    code, _, err = run(capsys, "compare", *TINY, "--seeds", "2", "--out", str(tmp_path), "--methods", "greedy()")
    assert code == 1
    assert "| greedy(), 1 of 2 seeds | " in err
    assert "- The disk is full." in err


def _end(end: Score | BaseException) -> Score:
    if isinstance(end, BaseException):
        raise end
    return end


def test_a_directory_that_cannot_be_made_is_told_before_the_first_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", refuse)
    code, _, err = run(capsys, "compare", *TINY, "--out", str(tmp_path / "r"), "--methods", "greedy()")
    assert code == 2
    assert "cannot be made (No space left on device): choose another --out." in err
    assert "measuring" not in err
