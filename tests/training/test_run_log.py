"""What loggers are told of runs and comparisons, and that nothing else changes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import localprop as lp
from localprop.cli import main as cli
from localprop.loggers import Record
from tests.helpers.cli import QUICK, names_in, read_epochs, run_train
from tests.training.test_run import run_until

SMALL: dict[str, Any] = {"model": "mlp:16", "limit": 100, "epochs": 3, "batch_size": 40}


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return [*csv.DictReader(opened)]


def test_records_have_the_figures_of_the_reports(tmp_path: Path) -> None:
    records: list[Record] = []
    reports: list[lp.EpochReport] = []
    summary = lp.train(log=records.append, on_epoch=reports.append, **SMALL)
    start, *epochs, end = records
    assert start == {"kind": "start", "epoch": 0, "epochs": 3, "config": summary["config"]}
    assert [record["epoch"] for record in epochs] == [1, 2, 3]
    # A name that is also the folder of others is refused by MLflow's files.
    assert not {name.partition("/")[0] for name in end if "/" in name} & {*end}
    # 100 images, of which a tenth is held out: batches of 40, 40 and 10.
    assert [record["step"] for record in epochs] == [3, 6, 9]
    for record, report in zip(epochs, reports, strict=True):
        assert [record["loss/0"], record["loss/1"]] == [*report.losses]
        assert record["validation_accuracy"] == report.validation_accuracy
        assert record["exit_accuracy/0"] == report.exit_accuracies[0]
        assert record["lr"] == report.lr
        assert "peak_memory_bytes" not in record  # of CUDA alone
    assert end["kind"] == "end"
    assert end["outcome"] == "finished"
    assert end["test_accuracy"] == end["exit_test_accuracy/1"] == summary["test_accuracy"]


def test_the_files_of_a_run_are_the_same_with_and_without_a_log(tmp_path: Path) -> None:
    plain, logged = tmp_path / "plain", tmp_path / "logged"
    assert run_train("--out", plain) == 0
    assert run_train("--out", logged, "--log", f"csv:{tmp_path / 'log.csv'}") == 0
    assert names_in(logged) == names_in(plain)
    assert read_epochs(logged) == read_epochs(plain)
    for file in sorted(plain.glob("*.safetensors")):
        one, other = load_file(file), load_file(logged / file.name)
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)


def test_a_log_in_the_directory_of_a_resumed_run_has_each_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    log = f"csv:{run / 'log.csv'}"
    assert run_train("--out", run, "--log", log) == 0
    whole = [row | {"seconds": ""} for row in read_rows(run / "log.csv")]
    assert [row["epoch"] for row in whole] == ["1", "2", "3"]
    # As if the run had been killed after the second epoch's checkpoint.
    for name in ("epoch-00003.safetensors", "best.safetensors", "summary.json"):
        (run / name).unlink(missing_ok=True)
    assert run_train("--out", run, "--resume", "--log", log, quick=False) == 0
    assert [row | {"seconds": ""} for row in read_rows(run / "log.csv")] == whole


def test_a_logger_that_fails_costs_the_run_nothing(tmp_path: Path) -> None:
    notes: list[str] = []

    def fail(record: Record) -> None:
        if record["kind"] == "epoch":
            raise ValueError("no space")

    summary = lp.train(log=fail, out=str(tmp_path / "a"), on_note=notes.append, **SMALL)
    assert notes == ["The logger fail failed (ValueError: no space): the run goes on without it."]
    assert len(summary["epochs"]) == 3
    assert (tmp_path / "a" / "summary.json").exists()


def test_the_end_of_a_run_that_is_stopped_or_fails_is_logged() -> None:
    records: list[Record] = []

    def interrupt(report: lp.EpochReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lp.train(log=records.append, on_epoch=interrupt, **SMALL)
    assert [record["kind"] for record in records] == ["start", "epoch", "end"]
    assert records[-1] == {"kind": "end", "outcome": "stopped", "error": "KeyboardInterrupt"}
    records.clear()
    with pytest.raises(lp.RunFailed):
        lp.train(log=records.append, **{**SMALL, "lr": 1e30})
    assert records[-1]["outcome"] == "failed"
    assert "not finite" in records[-1]["error"] or "nan" in records[-1]["error"]


def test_bad_logs_are_listed_with_the_other_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.csv").write_text("a,b\n")
    words = ["--log", "csv", "--log", "excel:a", "--log", f"csv:{tmp_path / 'thesis.csv'}"]
    words += ["--log", "csv:a.csv", "--log", "csv:a.csv", "--epochs", "0"]
    assert run_train(*words, "--out", tmp_path / "run") == 2
    assert capsys.readouterr().err.count("\n- ") == 5
    assert names_in(tmp_path) == ["thesis.csv"]
    assert cli.main(["compare", *QUICK, *words, "--methods", "greedy()"]) == 2
    assert capsys.readouterr().err.count("\n- ") == 5


def test_a_comparison_logs_each_run_under_its_name(tmp_path: Path) -> None:
    records: list[Record] = []
    file = tmp_path / "log.csv"
    lp.compare(
        ["end_to_end()", "greedy()"],
        seeds=1,
        rounds=2,
        log=[records.append, f"csv:{file}"],
        **{**SMALL, "epochs": 2},
    )
    rows = [(row["run"], row["epoch"]) for row in read_rows(file)]
    names = ["end_to_end/seed-0", "greedy/seed-0"]
    assert rows == [(name, epoch) for name in names for epoch in ("1", "2")]
    kinds = ["start", "epoch", "epoch", "end"]
    assert [(record["run"], record["kind"]) for record in records] == [
        (name, kind) for name in names for kind in kinds
    ]


def test_a_run_that_is_interrupted_before_its_checkpoint_logs_no_epoch_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    run_until(tmp_path / "run", monkeypatch, epoch=2, at="before")

    def note(record: Record) -> None:
        if record["kind"] != "end":
            epochs.append(record["epoch"])

    lp.train(out=str(tmp_path / "run"), resume=True, log=note)
    assert epochs == [1, 2, 3]  # the first is that of the start: one epoch is done
