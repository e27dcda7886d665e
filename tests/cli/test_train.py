"""`localprop train` and `localprop show`: what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import re
import sys

import pytest

from localprop.cli import main as cli
from tests.helpers.cli import QUICK, run_train


def test_a_run_prints_its_accuracy_and_logs_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train() == 0
    out, err = capsys.readouterr()
    assert out.startswith("test accuracy 0.")
    assert len(out.splitlines()) == 1
    assert [line.split("  ")[0] for line in err.splitlines()] == [
        "epoch 1/3",
        "epoch 2/3",
        "epoch 3/3",
    ]


def test_notes_stand_before_the_first_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train("--method", "interlocking(wise=9)", "--json") == 0
    out, err = capsys.readouterr()
    note = "InterlockingCredit(wise=9) is the same as wise=2 on this network."
    assert err.splitlines()[0] == f"Note: {note}"
    assert err.count("Note:") == 1
    assert json.loads(out)["notes"] == [note]


def test_text_is_scored_in_bits(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--data text --model transformer:width=8,blocks=1 --context 16 --limit 64 --epochs 2"
    assert run_train(*words.split(), quick=False) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"test accuracy 0\.\d+  bits per byte \d\.\d{3}\n", out)
    assert all("bits per byte" in line for line in err.splitlines())


def test_json_is_all_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train("--json", "--method", "contsup", "--modules", 1) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["config"]["modules"] == 1
    assert 0 <= summary["test_accuracy"] <= 1
    assert [report["epoch"] for report in summary["epochs"]] == [1, 2, 3]


def test_show_prints_the_credit_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", *QUICK]) == 0
    assert "loss0 T" in capsys.readouterr().out
    assert cli.main(["show", *QUICK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["model"] == "mlp:16"


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run_train("--json") == 0
    out, err = capsys.readouterr()
    assert "epoch 3/3" in err
    json.loads(out)


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (["--epochs", "0"], 1),
        (
            [
                "--lr",
                "high",
                "--epochs",
                "-1",
                "--momentum",
                "2",
                "--method",
                "nope(",
                "--limit",
                "0",
            ],
            5,
        ),
        (["--data", "nope"], 1),
        (["--data", "/nowhere/x.npz"], 1),
        (["--model", "nope"], 1),
        (["--model", "resnet8", "--modules", "99"], 1),
        (["--method", "auglocal(depth=9)"], 1),
        (["--device", "cuda:99"], 1),
        (["--method", "__import__('os').abort()"], 1),
        (["--resume"], 1),
        (["--overwrite"], 1),
    ],
)
def test_bad_input_is_listed(
    words: list[str], problems: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert sum(line.startswith("- ") for line in err.splitlines()) == problems


def test_a_last_batch_of_one_image_is_left_out() -> None:
    words = "--model resnet8 --epochs 2 --limit 65 --method auglocal(depth=1) --device cpu"
    assert run_train(*words.split(), quick=False) == 0
