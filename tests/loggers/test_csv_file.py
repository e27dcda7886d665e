"""Logs as CSV: whole rows, one for each epoch, and nothing of others lost."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from localprop import BadInput
from localprop.loggers import CsvFile


def start(log: CsvFile, done: int = 0, **more: str) -> None:
    log({"kind": "start", "epoch": done, **more})


def add(log: CsvFile, epoch: int, **figures: float | str) -> None:
    log({"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "lr": 0.1, **figures})


def test_rows_have_the_columns_in_the_order_of_the_first_epoch(tmp_path: Path) -> None:
    file = tmp_path / "new" / "log.csv"
    log = CsvFile(file)
    start(log)
    add(log, 1, **{"loss/0": 2.5, "seconds": 1.0})
    log({"kind": "end", "outcome": "finished", "test_accuracy": 0.5})
    assert file.read_text() == "epoch,step,lr,loss/0,seconds\n1,10,0.1,2.5,1.0\n"


def test_a_figure_that_comes_later_gets_a_column(tmp_path: Path) -> None:
    log = CsvFile(tmp_path / "log.csv")
    start(log)
    add(log, 1, **{"loss/1": 2.5})
    add(log, 2, **{"loss/0": 1.5})
    assert log.path.read_text() == "epoch,step,lr,loss/1,loss/0\n1,10,0.1,2.5,\n2,20,0.1,,1.5\n"


def test_a_resumed_run_replaces_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    first = CsvFile(tmp_path / "log.csv")
    start(first)
    for epoch in (1, 2, 3):
        add(first, epoch, loss=0.1 * epoch)
    second = CsvFile(tmp_path / "log.csv")
    start(second, done=1)
    assert first.path.read_text() == "epoch,step,lr,loss\n1,10,0.1,0.1\n"
    add(second, 2, loss=9.0)
    assert first.path.read_text() == "epoch,step,lr,loss\n1,10,0.1,0.1\n2,20,0.1,9.0\n"


def test_a_new_run_replaces_all_rows(tmp_path: Path) -> None:
    log = CsvFile(tmp_path / "log.csv")
    start(log)
    add(log, 1)
    start(CsvFile(log.path))
    assert log.path.read_text() == ""


def test_runs_of_a_comparison_share_the_file(tmp_path: Path) -> None:
    log = CsvFile(tmp_path / "log.csv")
    for run in ("a,b/seed-0", "c/seed-0", "a,b/seed-0"):
        start(log, run=run)
        add(log, 1, run=run)
    with log.path.open(newline="") as file:
        rows = [(row["run"], row["epoch"]) for row in csv.DictReader(file)]
    assert rows == [("c/seed-0", "1"), ("a,b/seed-0", "1")]
    assert log.path.read_text().startswith("run,epoch,step,lr\n")


@pytest.mark.parametrize(
    "content",
    [
        b"name,age\nAda,36\n",
        b"a thesis",
        b"\xff\xfe\x00",
        b"epoch,step\n1\n",
        b"epoch,step\none,2\n",
        b"epoch,step\n1,2,3\n",
    ],
)
def test_other_files_are_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "log.csv"
    file.write_bytes(content)
    with pytest.raises(BadInput, match="is no log of a run"):
        CsvFile(file)
    assert file.read_bytes() == content


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is not a writable directory"):
        CsvFile(tmp_path / "file" / "log.csv")
    with pytest.raises(BadInput, match="is no log of a run"):
        CsvFile(tmp_path)
