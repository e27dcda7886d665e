"""`localprop analyse`: what it writes beside runs, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import localprop as lp
from tests.helpers.cli import names_in, read_json, run_command

SMALL: dict[str, Any] = {"model": "mlp:8", "epochs": 2, "limit": 60, "device": "cpu"}
METHODS = ["end_to_end()", "greedy()"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of end-to-end and greedy training, with two seeds."""
    folder = tmp_path_factory.mktemp("results") / "compared"
    lp.compare(METHODS, seeds=2, rounds=2, out=str(folder), on_note=lambda note: None, **SMALL)
    return folder


def test_runs_of_a_comparison_are_compared_seed_by_seed(
    capsys: pytest.CaptureFixture[str], compared: Path
) -> None:
    before = {file: file.read_bytes() for file in compared.rglob("*") if file.is_file()}
    code, out, _ = run_command(capsys, "analyse", str(compared), "--rows", "40")
    assert code == 0
    files = [
        compared / f"{m}/seed-{s}/analysis.json" for m in ("end_to_end", "greedy") for s in (0, 1)
    ]
    assert [f"Written: {file}" in out for file in files] == [True] * 4
    assert all(file.read_bytes() == content for file, content in before.items())
    whole, _, greedy, other = map(read_json, files)
    assert (whole["epochs"], whole["probe"]["train_rows"]) == (2, 40)
    assert set(whole["gradients"]["cosines"]) == {1.0}
    assert greedy["gradients"]["cosines"][0] < 1.0
    diagonal = [row[k] for k, row in enumerate(whole["representations"]["values"])]
    assert diagonal == pytest.approx([1.0] * 2)
    assert greedy["representations"]["values"][0][0] < 0.999
    ends = [Path(each["end_to_end"]) for each in (whole, greedy, other)]
    assert ends == [compared / f"end_to_end/seed-{seed}" for seed in (0, 0, 1)]
    content = [file.read_bytes() for file in files]
    lp.analyse(compared, rows=40)
    assert [file.read_bytes() for file in files] == content


def test_a_run_alone_has_nothing_to_be_compared_with(compared: Path) -> None:
    folder = compared / "greedy" / "seed-0"
    (found,) = lp.analyse(folder)["runs"]
    assert (found["representations"], found["end_to_end"]) == (None, None)
    assert found["notes"] == ["No run was trained end to end, to compare representations with."]


def test_all_problems_at_once_and_nothing_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    words = ["analyse", str(tmp_path / "nowhere"), str(empty), "--rows", "0"]
    code, _, err = run_command(capsys, *words)
    assert code == 2
    for part in ("rows=0 must be 1 or more", "nowhere is no directory", "empty holds no run"):
        assert part in err
    assert names_in(tmp_path) == ["empty"]
    assert names_in(empty) == []
    with pytest.raises(lp.BadInput, match="There is no field 'lr' here: choose one of root"):
        lp.analyse(tmp_path, lr=0.1)


def test_a_run_without_a_checkpoint_is_refused(compared: Path, tmp_path: Path) -> None:
    config = (compared / "greedy" / "seed-0" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(lp.BadInput, match="no checkpoint yet: let the run finish an epoch"):
        lp.analyse(tmp_path)
    assert names_in(tmp_path) == ["config.json"]
