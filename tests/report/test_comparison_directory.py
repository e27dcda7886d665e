"""`localprop compare --out`: what it keeps, and how it goes on after it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import localprop as lp
from localprop.engine.loss import Losses
from localprop.errors import BadInput
from localprop.learner import Learner
from localprop.report.compare import Progress
from localprop.report.comparison_directory import ComparisonDirectory, name_folder
from tests.helpers.cli import names_in, read_json, run_command

FLAGS = "--model mlp:8 --limit 60 --test-limit 30 --batch-size 8 --rounds 2 --device cpu --seeds 2"
COMMAND = ["compare", *FLAGS.split()]
METHODS = ["--methods", "end_to_end()", "greedy()"]
SHORT = [*COMMAND, "--epochs", "2", *METHODS]
TIMES = ("seconds", "step_seconds", "timing", "step_ratio", "step_ratio_low", "step_ratio_high")
# A test has another command line and parent than the process that it kills.
IGNORED = (*TIMES, "command", "launch")


def without_times(value: Any) -> Any:
    """Plain values without what a clock has measured, and who has started the process."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in IGNORED}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def read_files(folder: Path) -> dict[str, Any]:
    """All files of a folder by their paths: tensors, or plain values without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            found[name] = {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}
        elif path.suffix == ".jsonl":
            found[name] = [
                without_times(json.loads(line)) for line in path.read_text().split("\n")[:-1]
            ]
        elif path.is_file():
            found[name] = without_times(read_json(path))
    return found


# Runs a command, and kills its own process before it writes its n-th file.
KILLED = """
import os, signal, sys
from localprop.cli.main import main
from localprop.writing import files

replace, left = os.replace, [int(sys.argv.pop(1))]

def replace_or_die(*paths):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)

files.os.replace = replace_or_die
main(sys.argv[1:])
"""


def kill_before_file(number: int, words: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    program = [sys.executable, "-c", KILLED, str(number), *words]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_comparison_goes_on_to_the_same_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*COMMAND, "--epochs", "4", *METHODS, "--out"]
    assert run_command(capsys, *words, str(tmp_path / "a"))[0] == 0
    other = tmp_path / "b"
    # The files of a run: env, config, for each epoch metrics and a checkpoint, which may get a
    # second name as the best, and the summary. Then compare.json.
    kill_before_file(8, [*words, str(other)])
    assert names_in(other) == ["compare.json", "end_to_end"]
    assert read_json(other / "compare.json")["runs_left"] == 4
    assert not (other / "end_to_end" / "seed-0" / "summary.json").exists()
    # It goes on in the middle of the first run, and is killed in a later one.
    kill_before_file(34, [*words, str(other)])
    assert read_json(other / "compare.json")["runs_left"] in (1, 2)
    assert (other / "end_to_end" / "seed-0" / "summary.json").exists()
    assert run_command(capsys, *words, str(other))[0] == 0
    expected, found = read_files(tmp_path / "a"), read_files(other)
    assert list(found) == list(expected)
    assert (
        len(found) == 1 + 4 * 6
    )  # config, env, metrics, summary, the last and the best checkpoint
    for name, content in expected.items():
        assert found[name] == content, name


def test_what_is_kept_of_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_command(capsys, *SHORT, "--out", str(tmp_path / "r"))[0] == 0
    assert names_in(tmp_path / "r") == ["compare.json", "end_to_end", "greedy"]
    run = tmp_path / "r" / "greedy" / "seed-1"
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    for epoch in epochs:
        assert epoch["exits"] == [0, 1]
        assert epoch["exit_accuracies"][-1] == epoch["validation_accuracy"]
        assert epoch["exit_losses"][-1] == epoch["validation_loss"]
        assert len(epoch["exit_accuracies"]) == len(epoch["losses"]) == 2
        assert {"lr", "seconds"} <= epoch.keys()
    environment = read_json(run / "env.json")
    assert {"commit", "torch", "threads", "accelerator"} <= environment.keys()
    assert environment["data"]["test"].startswith("30 images, ")
    figures = read_json(tmp_path / "r" / "compare.json")
    assert figures["data"] == environment["data"]
    assert figures["methods"] == {"end_to_end()": "end_to_end()", "greedy()": "greedy()"}
    for row in figures["rows"]:
        costs = figures["costs"][row["method"]]
        assert costs["peak_bytes"] == row["peak_bytes"]
        assert costs["timing"]["ratio"] == row["step_ratio"]
    summary = read_json(run / "summary.json")
    assert summary["config"]["seed"] == 1
    assert 100 * summary["test_accuracy"] == figures["rows"][1]["accuracies"][1]


def test_more_methods_and_seeds_join_what_is_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_command(capsys, *SHORT, "--out", str(tmp_path))[0] == 0
    kept = tmp_path / "greedy" / "seed-0" / "summary.json"
    before = kept.stat().st_mtime_ns
    words = [*SHORT, "backlink()", "--out", str(tmp_path), "--seeds", "3"]
    assert run_command(capsys, *words)[0] == 0
    figures = read_json(tmp_path / "compare.json")
    assert [len(row["accuracies"]) for row in figures["rows"]] == [3, 3, 3]
    assert kept.stat().st_mtime_ns == before
    # The same again trains and measures nothing.
    _, out, err = run_command(capsys, *words)
    assert out.startswith("| method")
    assert "measuring" not in err
    assert read_json(tmp_path / "compare.json") == figures


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--lr", "0.2"], "lr=0.2, but the comparison in"),
        (["--methods", "greedy()"], "The method 'end_to_end()' is missing, but was end_to_end()"),
        (
            ["--methods", "greedy(): backlink()", "end_to_end()"],
            "The method 'greedy()' is backlink",
        ),
        (["--seeds", "1"], "also has the seeds 1"),
        (["--test-limit", "29"], "test_limit=29"),
        (["--methods", "Mine: greedy()", "mine: greedy()"], "2 methods would share the folder"),
    ],
)
def test_another_comparison_is_refused_and_nothing_changes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, changed: list[str], message: str
) -> None:
    assert run_command(capsys, *SHORT, "--out", str(tmp_path))[0] == 0
    before = read_files(tmp_path)
    code, _, err = run_command(capsys, *SHORT, "--out", str(tmp_path), *changed)
    assert (code, message in err) == (2, True), err
    assert "--overwrite" in err or "labels" in err
    assert read_files(tmp_path) == before


def test_overwrite_begins_anew(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_command(capsys, *SHORT, "--out", str(tmp_path))[0] == 0
    (tmp_path / "greedy" / "notes.txt").write_text("mine")
    words = [
        *SHORT,
        "--lr",
        "0.2",
        "--out",
        str(tmp_path),
        "--overwrite",
        "--methods",
        "backlink()",
    ]
    assert run_command(capsys, *words)[0] == 0
    assert names_in(tmp_path) == ["backlink", "compare.json", "greedy"]
    assert names_in(tmp_path / "greedy") == ["notes.txt"]
    assert read_json(tmp_path / "compare.json")["config"]["lr"] == 0.2


def test_two_processes_do_not_share_a_directory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = ComparisonDirectory(tmp_path)
    other.claim({})
    code, _, err = run_command(capsys, *SHORT, "--out", str(tmp_path))
    other.release()
    assert (code, "Another process writes into" in err) == (2, True)


def test_a_run_of_another_config_is_refused(tmp_path: Path) -> None:
    lp.train(model="mlp:4", epochs=2, limit=60, out=str(tmp_path / "greedy" / "seed-0"))
    fields: dict[str, Any] = {"model": "mlp:8", "epochs": 2, "limit": 60, "device": "cpu"}
    with pytest.raises(BadInput, match=r"model='mlp:8', but the run in .* has 'mlp:4'"):
        lp.compare(["greedy()"], seeds=1, rounds=2, out=str(tmp_path), **fields)


def test_runs_with_one_seed_are_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """They begin with the same weights of the network, and see the same batches."""
    seen: dict[str, list[torch.Tensor]] = {}
    run = ""
    step = Learner.step

    def record(learner: Learner, batch: Any, **options: Any) -> Losses:
        if run:
            tensors = seen.setdefault(run, [])
            if not tensors:
                tensors.append(
                    torch.cat([p.detach().flatten() for p in learner.model.parameters()])
                )
            tensors += batch
        return step(learner, batch, **options)

    @contextmanager
    def follow(total: int) -> Iterator[Progress]:
        def begin(what: str, epochs: int) -> None:
            nonlocal run
            run = what if "seed" in what else ""

        yield begin

    monkeypatch.setattr(Learner, "step", record)
    methods = ["end_to_end()", "backlink()"]
    fields: dict[str, Any] = {"model": "resnet8", "epochs": 1, "limit": 40, "batch_size": 8}
    lp.compare(methods, seeds=2, rounds=2, show_progress=follow, augment="crop,flip", **fields)
    assert len(seen) == 4
    for seed in ("seed 1 of 2", "seed 2 of 2"):
        one, other = (seen[f"{method}, {seed}"] for method in methods)
        assert len(one) == len(other) > 10
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    first, second = (seen[f"end_to_end(), seed {n} of 2"] for n in (1, 2))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_names_of_folders_need_no_quotes() -> None:
    assert name_folder("greedy()") == "greedy"
    assert name_folder("end_to_end() with recompute=modules") == "end_to_end-with-recompute=modules"
    assert name_folder("../..") == "method"
    assert name_folder("/etc") == "etc"
    long = [name_folder("x" * 300 + end) for end in "ab"]
    assert long[0] != long[1]
    assert max(map(len, long)) <= 80
