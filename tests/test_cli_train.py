"""The command line: exit codes, what goes where, and what is left on the disk."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localprop import cli, cli_train
from localprop.training import rundir, trainer

QUICK = ["--model", "mlp:16", "--limit", "100", "--epochs", "3"]
FILES = ["config.json", "env.json", "last.pt", "metrics.jsonl", "summary.json"]


def train(*words: object, quick: bool = True) -> int:
    return cli.main(["train", *(QUICK if quick else []), *map(str, words)])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# success


def test_a_run_prints_its_accuracy_and_logs_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    out, err = capsys.readouterr()
    assert out.startswith("test accuracy 0.")
    assert len(out.splitlines()) == 1
    assert [line.split("  ")[0] for line in err.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_text_is_told_in_bits(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--data",
        "text",
        "--model",
        "transformer:width=8,blocks=1",
        "--context",
        "16",
        "--limit",
        "64",
        "--epochs",
        "2",
    ]
    assert train(*words, quick=False) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"test accuracy 0\.\d+  bits per byte \d\.\d{3}\n", out)
    assert all("bits per byte" in line for line in err.splitlines())


def test_every_field_is_a_flag() -> None:
    values = {
        "cuts": ("0,2", (0, 2)), "milestones": ("3", (3,)), "mean": ("0.5", (0.5,)), "std": ("1,2.5", (1.0, 2.5)),
        "clip_norm": ("2", 2), "limit": ("many", "many"), "phases": ("greedy() for 1", "greedy() for 1"), "lr": ("1e-3", 1e-3),
    }  # fmt: skip
    flags = [word for name, (text, _) in values.items() for word in ("--" + name.replace("_", "-"), text)]
    given = cli.given(cli._parser().parse_args(["train", *flags]))
    assert given == {name: value for name, (_, value) in values.items()}


def test_a_run_with_tuples_is_resumed(tmp_path: Path) -> None:
    words = ["--model", "resnet8", "--limit", "60", "--epochs", "2", "--cuts", "0,2", "--mean", "0.5", "--std", "0.5"]
    assert train(*words, "--lr-schedule", "multistep", "--milestones", "1", "--out", tmp_path, quick=False) == 0
    whole = timeless(tmp_path)
    (tmp_path / "last.pt").unlink()
    assert train("--out", tmp_path, "--resume", "--cuts", "0,2", quick=False) == 0
    assert timeless(tmp_path) == whole
    assert train("--out", tmp_path, "--resume", "--cuts", "0", quick=False) == 2


def test_json_is_all_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--json", "--method", "contsup", "--modules", 1) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["config"]["modules"] == 1
    assert 0 <= summary["test_accuracy"] <= 1
    assert [report["epoch"] for report in summary["epochs"]] == [1, 2, 3]


def test_a_run_directory(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    assert train("--out", folder, "--method", "greedy") == 0
    assert names(folder) == FILES
    config = read(folder / "config.json")
    assert (config["method"], config["modules"], config["warmup_epochs"], config["limit"]) == ("greedy", 2, 0, 100)
    assert config["device"] != "auto"
    env = read(folder / "env.json")
    assert env.keys() >= {"python", "torch", "localprop", "accelerator", "threads", "commit", "command"}
    summary = read(folder / "summary.json")
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics == summary["epochs"]
    assert summary["rule"].startswith("Rule(credit=Own(")
    assert summary["test_loss"] > 0
    assert summary["validation_loss"] == metrics[-1]["validation_loss"]


def test_a_run_directory_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train("--out", "~/run") == 0
    assert names(tmp_path / "run") == FILES


def test_show_prints_the_credit_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", *QUICK]) == 0
    assert "loss0 T" in capsys.readouterr().out
    assert cli.main(["show", *QUICK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["model"] == "mlp:16"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert train("--json") == 0
    out, err = capsys.readouterr()
    assert "epoch 3/3" in err
    json.loads(out)


# bad input: 2


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (["--epochs", "0"], 1),
        (["--lr", "high", "--epochs", "-1", "--momentum", "2", "--method", "nope(", "--limit", "0"], 5),
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
def test_bad_input_is_listed(words: list[str], problems: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert sum(line.startswith("- ") for line in err.splitlines()) == problems


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--optimizer", "adam", "--momentum", "0.9"], "--momentum has no effect with --optimizer adam"),
        (["--optimizer", "adamw", "--nesterov"], "--nesterov has no effect with --optimizer adamw"),
        (["--optimizer", "adamw", "--no-nesterov"], "--nesterov has no effect with --optimizer adamw"),
        (["--padding", "zeros"], "--padding has no effect without the augmentation 'crop'"),
        (["--padding", "zeros", "--augment", "flip"], "--padding has no effect"),
        (["--cutout", "4", "--augment", "crop"], "--cutout has no effect without the augmentation 'cutout'"),
        (["--crop-pad", "2", "--augment", "flip"], "--crop-pad has no effect without the augmentation 'crop'"),
        (["--data", "text", "--validation", "0.5"], "--validation has no effect on text"),
        (["--context", "8"], "--context has no effect on images"),
        (["--image-size", "8"], "--image-size has no effect without a folder"),
        (["--root", "."], "--root has no effect on digits"),
        (["--lr-factor", "0.5"], "--lr-factor has no effect with --lr-schedule cosine"),
    ],
)
def test_flags_without_effect_are_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "show", "compare"):
        assert cli.main([command, *QUICK, *words, "--lr", "0"]) == 2
        err = capsys.readouterr().err
        assert (told in err, err.count("\n- ")) == (True, 2)  # beside the learning rate


def test_flags_with_an_effect_are_taken() -> None:
    assert train("--augment", "crop,cutout", "--padding", "zeros", "--cutout", "4") == 0
    assert cli.main(["show", "resnet32_cifar10_dgl_k4", "--padding", "zeros", "--batch-size", "8"]) == 0


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
def test_bad_words_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: localprop")


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    assert train("--out", tmp_path / "run", "--model", "nope") == 2
    assert names(tmp_path) == []


def test_what_the_data_refuse_leaves_nothing_behind(tmp_path: Path) -> None:
    assert train("--out", tmp_path / "run", "--augment", "cutout") == 2
    assert names(tmp_path) == []


def test_an_existing_run_is_kept_unless_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--out", tmp_path) == 0
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    assert train("--out", tmp_path, "--lr", -1) == 2
    assert capsys.readouterr().err.count("\n- ") == 2
    assert train("--out", tmp_path, "--overwrite", "--lr", -1) == 2
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before
    (tmp_path / "notes.txt").write_text("mine")
    assert train("--out", tmp_path, "--overwrite", "--seed", 1) == 0
    assert names(tmp_path) == sorted([*FILES, "notes.txt"])
    assert read(tmp_path / "config.json")["seed"] == 1


def test_a_directory_of_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert train("--out", tmp_path, "--overwrite") == 2
    assert train("--out", tmp_path / "thesis.tex", "--overwrite") == 2
    assert train("--out", tmp_path / "thesis.tex" / "run") == 2
    assert names(tmp_path) == ["thesis.tex"]


# resumed runs


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch, *, epoch: int, at: str) -> None:
    """A run that Ctrl-C ends in the given epoch, before or after its report is kept."""
    keep = rundir.RunDir.keep

    def kept(self: rundir.RunDir, report: trainer.EpochReport, *learners: Any) -> None:
        if report.epoch == epoch and at == "before":
            raise KeyboardInterrupt
        keep(self, report, *learners)
        if report.epoch == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rundir.RunDir, "keep", kept)
        assert train("--out", folder) == 130


def timeless(folder: Path) -> list[dict[str, Any]]:
    return [report | {"seconds": 0} for report in read(folder / "summary.json")["epochs"]]


@pytest.mark.parametrize(("epoch", "at"), [(1, "before"), (1, "after"), (2, "after"), (3, "before"), (3, "after")])
def test_a_resumed_run_is_the_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train("--out", whole) == 0
    stopped(broken, monkeypatch, epoch=epoch, at=at)
    assert "--resume" in capsys.readouterr().err
    assert "summary.json" not in names(broken)
    assert train("--out", broken, "--resume", quick=False) == 0
    assert names(broken) == FILES
    assert timeless(broken) == timeless(whole)
    assert read(broken / "summary.json")["test_accuracy"] == read(whole / "summary.json")["test_accuracy"]
    assert len((broken / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_report_without_a_checkpoint_is_dropped(tmp_path: Path) -> None:
    assert train("--out", tmp_path) == 0
    before = timeless(tmp_path)
    (tmp_path / "last.pt").unlink()
    assert train("--out", tmp_path, "--resume", quick=False) == 0
    assert timeless(tmp_path) == before


def test_resume_refuses_other_values_but_takes_another_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--out", tmp_path) == 0
    assert train("--out", tmp_path, "--resume", "--lr", "0.2", "--seed", "3", quick=False) == 2
    assert capsys.readouterr().err.count("\n- ") == 2
    assert train("--out", tmp_path, "--resume", "--device", "cpu", "--epochs", "3", quick=False) == 0


def test_resume_of_what_is_no_run(tmp_path: Path) -> None:
    assert train("--out", tmp_path / "none", "--resume") == 2
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"nope": 1}'),
        ("config.json", '{"lr": "x"}'),
        ("config.json", "\udcff"),
        ("last.pt", "nope"),
        ("metrics.jsonl", "nope"),
        ("metrics.jsonl", '{"epoch": 1}'),
    ],
)
def test_resume_of_a_damaged_run(tmp_path: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--out", tmp_path) == 0
    capsys.readouterr()
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    assert train("--out", tmp_path, "--resume", quick=False) == 2
    err = capsys.readouterr().err
    assert name in err or "lr='x'" in err


# failed runs: 1, and Ctrl-C: 130


def test_a_run_that_diverges_exits_1_and_leaves_whole_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--lr", "1e30", "--out", tmp_path / "run") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "epoch 1, step 2" in err
    assert names(tmp_path / "run") == ["config.json", "env.json"]


def test_a_full_disk_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "metrics.jsonl":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert train("--out", tmp_path) == 1
    assert "No space left" in capsys.readouterr().err
    assert names(tmp_path) == ["config.json", "env.json"]


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_train, "train", interrupted)
    assert train() == 130
    assert "Traceback" not in capsys.readouterr().err


# as a process


def process(*words: str) -> subprocess.Popen[str]:
    """As from a terminal: a shell's background job ignores Ctrl-C, and its children inherit that."""
    return subprocess.Popen(
        [sys.executable, "-m", "localprop", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_a_signal_ends_a_process_with_130_and_whole_files(tmp_path: Path) -> None:
    run = process("train", "--model", "mlp:16", "--epochs", "100000", "--out", str(tmp_path / "run"))
    assert run.stderr is not None
    run.stderr.readline()
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert set(names(tmp_path / "run")) == set(FILES) - {"summary.json"}


def test_a_reader_that_leaves_causes_no_traceback() -> None:
    run = process("train", *QUICK, "--json")
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.close()
    assert "Traceback" not in run.stderr.read()
    run.wait(timeout=60)
    run.stderr.close()


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["show", "--help"], ["train", "--nope"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    probe = (
        f"import sys; from localprop.cli import main; code = main({words!r})\n"
        "print('heavy:', *(name for name in ('torch', 'numpy', 'sklearn', 'rich') if name in sys.modules))\n"
        "print('code:', code)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    assert "heavy:\n" in done.stdout
    assert f"code: {0 if '--help' in words else 2}" in done.stdout
