"""`localprop train` on ranks gives the results of one process.

That also holds after torchrun has restarted them, and for a run that other ranks resume.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from localprop.training.state_file import StateFile
from tests.helpers.cli import run_train
from tests.helpers.ranks import RankPool

pytestmark = pytest.mark.xdist_group("ranks")

RUN = ["--model", "mlp:16,16,16", "--modules", "4", "--method", "backlink(layers=1)"]
RUN += ["--limit", "300", "--batch-size", "100", "--microbatches", "2", "--epochs", "3"]
RUN += ["--device", "cpu"]


def launch(ranks: int, *words: str, restarts: int = 0) -> subprocess.Popen[str]:
    """Start torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    torchrun += ["--max-restarts", str(restarts), "-m", "localprop"]
    keep = {
        key: value
        for key, value in os.environ.items()
        if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    environment = keep | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [*torchrun, "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def train(pool: RankPool, ranks: int, *words: str) -> tuple[list[int], str, str]:
    """Run the command on ranks that are there already; exit codes, and what all of them print."""
    ended = pool.run(ranks, train_as_launched, words)
    codes, outs, errs = zip(*ended, strict=True)
    return [*codes], "".join(outs), "".join(errs)


def train_as_launched(words: Sequence[str]) -> tuple[int, str, str]:
    """Run the command on a rank, with the variables that torchrun sets."""
    rank, ranks = str(dist.get_rank()), str(dist.get_world_size())
    launched = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
    out, err = StringIO(), StringIO()
    with mock.patch.dict(os.environ, launched), redirect_stdout(out), redirect_stderr(err):
        code = run_train(*words, quick=False)
    return code, out.getvalue(), err.getvalue()


def newest(folder: Path) -> Path:
    return max(folder.glob("epoch-*.safetensors"))


def read_results(folder: Path) -> tuple[Any, Any]:
    """What a run computed, without the seconds."""
    summary = json.loads((folder / "summary.json").read_text())
    epochs = [
        {key: each[key] for key in ("losses", "modules", "validation_accuracy")}
        for each in summary["epochs"]
    ]
    return (summary["test_accuracy"], epochs), StateFile(newest(folder)).read()


def assert_same(one: Path, other_run: Path) -> None:
    (figures, state), (others, theirs) = read_results(one), read_results(other_run)
    assert figures == others
    assert state["steps"] == theirs["steps"]
    for component in ("model", "heads", "encoders", "optimizer"):
        assert state[component].keys() == theirs[component].keys()
        for name, value in state[component].items():
            other = theirs[component][name]
            is_tensor = isinstance(value, torch.Tensor)
            assert torch.equal(value, other) if is_tensor else value == other, name


def find_pid(out: Path, rank: int) -> int:
    """The process of a rank of the run in a directory."""
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_text()
            environment = (process / "environ").read_text().split("\0")
        except OSError:
            continue
        if f"RANK={rank}" in environment and str(out) in words:
            return int(process.name)
    raise AssertionError(f"rank {rank} does not run")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that the runs on ranks are compared with."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert run_train(*RUN, "--out", out, quick=False) == 0
    return out


def test_the_same_files_and_bits_on_four_ranks_and_a_resume_on_fewer(
    pool: RankPool, alone: Path, tmp_path: Path
) -> None:
    out, board = tmp_path / "four", tmp_path / "board"
    codes, printed, err = train(pool, 4, *RUN, "--out", str(out), "--log", f"tensorboard:{board}")
    assert codes == [0] * 4, err
    assert len([*board.iterdir()]) == 1  # rank 0 alone logs
    assert printed.count("test accuracy") == 1
    assert err.count("epoch 1/3") == 1  # rank 0 alone prints
    assert {file.name for file in out.iterdir()} == {file.name for file in alone.iterdir()}
    assert_same(alone, out)

    epochs = (out / "metrics.jsonl").read_text().splitlines()
    (out / "summary.json").unlink()
    # No epoch is left to train, but fewer ranks read the checkpoint of four.
    codes, _, err = train(pool, 2, "--out", str(out), "--resume")
    assert codes == [0, 0], err
    assert (out / "metrics.jsonl").read_text().splitlines() == epochs
    assert_same(alone, out)
    assert run_train("--out", out, "--resume", quick=False) == 0
    assert (out / "metrics.jsonl").read_text().splitlines() == epochs
    assert_same(alone, out)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process of a rank in /proc")
def test_a_killed_rank_is_named_and_a_restart_ends_with_the_same_bits(tmp_path: Path) -> None:
    words = [*RUN, "--model", "resnet8", "--epochs", "4"]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert run_train(*words, "--out", whole, quick=False) == 0
    process = launch(2, *words, "--timeout-s", "20", "--out", str(out), restarts=2)
    patience = time.monotonic() + 60
    while not any(out.glob("epoch-*")):
        assert time.monotonic() < patience
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(find_pid(out, 1), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err.count("epoch 1/4") == 1  # the run continued, and did not start again
    assert "Rank 1 failed" in err
    assert not (out / "failure.json").exists()
    assert_same(whole, out)


def test_a_wrong_number_of_ranks_is_reported_once(pool: RankPool) -> None:
    codes, out, err = train(pool, 3, *RUN, "--modules", "2")
    assert codes == [2] * 3
    assert out == ""
    assert err.count("3 ranks, but 2 module(s)") == 1
    assert "Traceback" not in err
