"""The command as a whole: exit codes, signals, and what --help imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from localprop.cli import main as cli
from localprop.training import run
from tests.helpers.cli import CHECKPOINTS, FILES, names_in, run_train


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["tran"],
        ["train", "--nope"],
        ["train", "--lr"],
        ["train", "--resume", "--overwrite"],
        ["train", "--epoch", "3"],
    ],
)
def test_unknown_words_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: localprop")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train", "--epoch", "3"], "instead of --epoch, did you mean --epochs?"),
        (["compare", "--seed=3", "--metods", "greedy()"], "did you mean --methods?"),
        (["plan", "--bugdet", "8GB"], "did you mean --budget?"),
        (["report", "a", "--output", "b"], "did you mean --out?"),
    ],
)
def test_unknown_flags_are_suggested(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert hint in err
    assert err.startswith(f"usage: localprop {words[0]}")


def test_nonsense_is_not_suggested_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--xyzzy", "1"]) == 2
    err = capsys.readouterr().err
    assert "unrecognized arguments: --xyzzy" in err
    assert "did you mean" not in err


def test_ctrl_c_exits_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupted)
    assert run_train() == 130
    assert "Traceback" not in capsys.readouterr().err


def start_process(*words: str) -> subprocess.Popen[str]:
    """Start a process as a terminal does.

    A background job of a shell ignores Ctrl-C, and its children would inherit that.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "localprop", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_signal_ends_a_process_with_130_and_whole_files(tmp_path: Path) -> None:
    run = start_process(
        "train", "--model", "mlp:16", "--epochs", "100000", "--out", str(tmp_path / "run")
    )
    assert run.stderr is not None
    run.stderr.readline()
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    names = {*names_in(tmp_path / "run")}
    saved = {name for name in names if name.endswith(".safetensors")}
    assert names - saved == {*FILES} - {*CHECKPOINTS, "summary.json"}
    assert "best.safetensors" in saved


def test_a_reader_that_leaves_causes_no_traceback() -> None:
    run = start_process("recipes")
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.close()
    assert "Traceback" not in run.stderr.read()
    assert run.wait(timeout=60) == 1
    run.stderr.close()


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["show", "--help"], ["train", "--nope"]]
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    probe = (
        f"import sys; from localprop.cli.main import main; code = main({words!r})\n"
        "heavy = [name for name in ('torch', 'numpy', 'sklearn', 'rich') if name in sys.modules]\n"
        "print('heavy:', *heavy)\n"
        "print('code:', code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True
    )
    assert "heavy:\n" in done.stdout
    assert f"code: {0 if '--help' in words else 2}" in done.stdout
