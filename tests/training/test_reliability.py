"""What docs/reliability.md promises of files: kills, damages, locks, signals, full disks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel

import localprop as lp
from localprop.errors import BadInput, RunFailed, RunStopped
from localprop.training.checkpoint import load, save
from localprop.training.directory_lock import DirectoryLock
from localprop.training.run_directory import RunDirectory
from localprop.training.state_file import StateFile, write_state
from localprop.training.trainer import train
from tests.helpers.cli import FILES, names_in, read_epochs, run_train
from tests.training.test_checkpoint import (
    adam,
    assert_equal,
    build_learner,
    copy_state,
    make_batch,
    run_steps,
    sgd,
)

LAST = "epoch-00003.safetensors"
ROOT = Path(__file__).parent.parent.parent


def measure(what: str, count: int, folder: Path, *more: str) -> dict[str, Any]:
    words = [sys.executable, "benchmarks/reliability.py", what, "--count", str(count), *more]
    environment = os.environ | {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["failures"] == []
    return result


# --- kills and damages ---


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_run_killed_anywhere_ends_with_the_same_files_and_bits(tmp_path: Path) -> None:
    """By one rule of each kind and with phases; benchmarks/README.md has those of all methods."""
    result = measure("kills", 50, tmp_path, "--settings", "7")
    assert sum(result["kills"].values()) >= 50


def test_a_damaged_checkpoint_is_refused_by_name_or_equal(tmp_path: Path) -> None:
    result = measure("damages", 150, tmp_path)
    assert sum(result["damages"].values()) == 150
    assert result["more_mib"] < 200


def test_every_flipped_bit_of_a_tensor_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_state(path, {"model": {"weight": torch.randn(5)}})
    content = path.read_bytes()
    for bit in range(8 * 20):
        damaged = bytearray(content)
        damaged[len(content) - 20 + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match="damaged in model/weight"):
            StateFile(path).read()


# --- what is in a checkpoint ---


def test_layouts_and_ties_are_restored(tmp_path: Path) -> None:
    def build(seed: int) -> lp.Learner:
        return build_learner(seed, optimizer=adam)

    one, two = build(1), build(2)
    one.model.to(memory_format=torch.channels_last)
    run_steps(one, 0, 2)
    save(tmp_path / "a", one)
    load(tmp_path / "a", two)
    weight = two.model.get_submodule("blocks.1.conv").weight
    assert isinstance(weight, nn.Parameter)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert run_steps(two, 2, 4) == run_steps(one, 2, 4)
    assert_equal(copy_state(two), copy_state(one))
    tied = torch.randn(3, 4)
    write_state(tmp_path / "b", {"in": tied, "out": tied, "turned": tied.t()})
    content = StateFile(tmp_path / "b").read()
    assert content["in"] is content["out"]
    assert content["turned"].stride() == (1, 4)


def test_extra_objects_travel_along(tmp_path: Path) -> None:
    def build(seed: int) -> tuple[lp.Learner, dict[str, Any]]:
        learner = build_learner(seed, shared=True)
        scheduler = StepLR(learner.optimizers[0], 2)
        return learner, {
            "ema": AveragedModel(learner.network),
            "scheduler": scheduler,
            "seen": {"samples": 3, "order": (seed, float("inf"))},
        }

    (one, extra), (two, other) = build(1), build(2)
    one.step(make_batch(0))
    extra["ema"].update_parameters(one.network)
    extra["scheduler"].step()
    save(tmp_path / "a", one, extra=extra)
    before = copy_state(two)
    refused = {**other, "scheduler": nn.Linear(2, 2)}
    with pytest.raises(BadInput, match="scheduler does not take its state"):
        load(tmp_path / "a", two, extra=refused)
    with pytest.raises(BadInput, match="also has ema, scheduler, seen"):
        load(tmp_path / "a", two)
    assert other["ema"].n_averaged == 0
    assert_equal(copy_state(two), before)
    load(tmp_path / "a", two, extra=other)
    assert other["seen"] == {"samples": 3, "order": (1, float("inf"))}
    assert other["scheduler"].last_epoch == 1
    assert_equal(other["ema"].state_dict(), extra["ema"].state_dict())
    load(tmp_path / "a", two, extra=None)
    with pytest.raises(BadInput, match="extra/ema is a object"):
        save(tmp_path / "a", one, extra={"ema": object()})


def test_a_state_with_nan_takes_no_good_file(tmp_path: Path) -> None:
    learner = build_learner(1)
    save(tmp_path / "a", learner)
    before = (tmp_path / "a").read_bytes()
    with torch.no_grad():
        next(learner.heads.parameters()).fill_(torch.nan)
    with pytest.raises(RunFailed, match="NaN or infinity in heads/0"):
        save(tmp_path / "a", learner)
    assert (tmp_path / "a").read_bytes() == before
    save(tmp_path / "b", learner)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rule": lp.backlink(layers=1)}, "trained by Rule.*but this learner has Rule"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5)}, "momentum=0.9.*0.5"),
        ({"optimizer": adam}, "which Adam needs"),
        ({"seed": 1}, "seed=0, but this learner has seed=1"),
        ({"double": True}, "is float32 in the checkpoint, but float64 here"),
    ],
)
def test_everything_is_checked_before_anything_changes(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    def build(
        rule: lp.Rule = lp.greedy(),  # noqa: B008
        optimizer: Any = sgd,
        seed: int = 0,
        double: bool = False,
    ) -> lp.Learner:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
        batch = torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64)
        if double:
            model, batch = model.double(), (batch[0].double(), batch[1])
        return lp.Learner(model, rule, modules=3, optimizer=optimizer, sample=batch, seed=seed)

    save(tmp_path / "a", build())
    other = build(**change)
    before = copy_state(other)
    with pytest.raises(BadInput, match=f"(?s){words}"):
        load(tmp_path / "a", other)
    assert_equal(copy_state(other), before)


def test_sparse_and_meta_entries_are_refused_before_anything_changes() -> None:
    learner = build_learner(1)
    before = copy_state(learner)
    for value in (torch.zeros(10).to_sparse(), torch.zeros(10, device="meta")):
        state = copy_state(learner)
        state["model"]["classifier.bias"] = value
        with pytest.raises(BadInput, match=r"classifier\.bias are sparse or meta"):
            learner.load_state_dict(state)
    with pytest.raises(BadInput, match="steps=-1"):
        learner.load_state_dict({**copy_state(learner), "steps": -1})
    assert_equal(copy_state(learner), before)


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a").symlink_to(tmp_path / "precious")
    (tmp_path / "a.tmp").symlink_to(tmp_path / "precious")
    save(tmp_path / "a", build_learner(1))
    assert (tmp_path / "precious").read_text() == "mine"


# --- the directory of a run ---


def test_the_newest_good_checkpoint_is_resumed_and_the_others_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train("--out", tmp_path / "whole") == 0
    run = tmp_path / "run"
    assert run_train("--out", run) == 0
    for name in ("epoch-00003", "best"):
        path = run / f"{name}.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.unlink()  # best.safetensors may be a second name of another file
        path.write_bytes(content)
    (run / "metrics.jsonl").write_text("nope")
    (run / "env.json").write_text("[" * 100000)
    (run / ".localprop-0123.tmp").write_bytes(b"half")
    (run / "config.json").unlink()
    with pytest.raises(BadInput, match=r"epoch-00003.safetensors is damaged in .* --resume"):
        lp.evaluate(run)
    capsys.readouterr()
    assert run_train("--out", run, "--resume", quick=False) == 0
    err = capsys.readouterr().err
    for words in (
        "Skipped: .*epoch-00003.safetensors is damaged",
        "metrics.jsonl is missing or damaged",
        "env.json is missing or damaged",
        "config.json cannot be read .*: the checkpoint has it",
    ):
        assert re.search(words, err), words
    assert "Traceback" not in err
    assert read_epochs(run) == read_epochs(tmp_path / "whole")
    assert {*FILES} - {"best.safetensors"} <= {*names_in(run)} <= {*FILES}


def test_checkpoints_that_are_all_damaged_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train("--out", tmp_path) == 0
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"nope")
    assert run_train("--out", tmp_path, "--resume", quick=False) == 2
    assert capsys.readouterr().err.count("cannot be read as a checkpoint") == 3
    assert run_train("--out", tmp_path, "--overwrite") == 0


def test_keep_and_the_best_one(tmp_path: Path) -> None:
    assert run_train("--out", tmp_path, "--keep", "1") == 0
    saved = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert saved == ["best.safetensors", "epoch-00003.safetensors"]
    accuracies = [report["validation_accuracy"] for report in read_epochs(tmp_path)]
    best = StateFile(tmp_path / "best.safetensors").about["epoch"]
    assert best == 1 + accuracies.index(max(accuracies))
    assert run_train("--out", tmp_path, "--keep", "0") == 2


def test_a_second_run_is_refused_and_the_lock_ends_with_its_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train("--out", tmp_path) == 0
    lock = DirectoryLock()
    lock.take(tmp_path)
    for flag in ("--resume", "--overwrite"):
        assert run_train("--out", tmp_path, flag, quick=False) == 2
        assert "Another process writes into" in capsys.readouterr().err
    lock.release()
    assert run_train("--out", tmp_path, "--overwrite") == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_finishes_the_step_and_saves(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--batch-size", "20", "--phases", "greedy() for 1; end_to_end() for 1"]
    assert run_train(*words, "--out", tmp_path / "whole") == 0
    number = getattr(signal, name)

    def send(epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == (2, 3):
            os.kill(os.getpid(), number)

    fields: dict[str, Any] = {"model": "mlp:16", "limit": 100, "epochs": 3}
    fields |= {"batch_size": 20, "phases": words[-1]}
    before = signal.getsignal(number)
    with pytest.raises(RunStopped, match=f"{name}: the run stopped after step 3 of epoch 2"):
        lp.train(**fields, out=str(tmp_path / "run"), on_step=send)
    assert signal.getsignal(number) == before
    assert (tmp_path / "run/epoch-00001-step-000003.safetensors").exists()
    assert run_train("--out", tmp_path / "run", "--resume", quick=False) == 0
    assert read_epochs(tmp_path / "run") == read_epochs(tmp_path / "whole")
    assert names_in(tmp_path / "run") == names_in(tmp_path / "whole")
    one, other = (StateFile(tmp_path / run / LAST).hashes for run in ("run", "whole"))
    assert one == other


def test_the_command_says_how_to_go_on_after_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train_and_stop(*given: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return train(*given, **named)

    monkeypatch.setattr("localprop.training.run.train", train_and_stop)
    assert run_train("--out", tmp_path) == 143
    assert f"Continue with: localprop train --out {tmp_path} --resume" in capsys.readouterr().err


def test_data_and_config_that_changed_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, run = tmp_path / "own.txt", tmp_path / "run"
    text.write_text("localprop " * 200)
    words = ["--data", text, "--model", "transformer:width=8,blocks=2", "--context", "8"]
    assert run_train(*words, "--epochs", "2", "--limit", "20", "--out", run, quick=False) == 0
    text.write_text("localpro! " * 200)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "lr": 0.3}))
    capsys.readouterr()
    assert run_train("--out", run, "--resume", quick=False) == 2
    err = capsys.readouterr().err
    assert err.count("The data have changed") == 3
    assert "lr=0.3 in config.json, but" in err


@pytest.mark.parametrize("what", ["directory", "removed"])
def test_a_run_that_cannot_write_stops_with_the_reason(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def break_it(report: Any) -> None:
        if what == "directory":
            (run / "epoch-00002.safetensors").mkdir()
        else:
            run.rename(tmp_path / "moved")

    with pytest.raises(RunFailed, match="cannot be written"):
        lp.train(model="mlp:16", limit=100, epochs=3, out=str(run), on_epoch=break_it)
    kept = (run if what == "directory" else tmp_path / "moved") / "epoch-00001.safetensors"
    StateFile(kept).read()


@pytest.mark.parametrize("left", [[], [".localprop-01.tmp"], [".localprop-01.tmp", "env.json"]])
def test_what_a_kill_in_the_first_write_leaves_is_no_run(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).write_text('{"localprop": "0.1.0"}')
    RunDirectory(tmp_path).refuse_used()
    assert run_train("--out", tmp_path) == 0
    assert names_in(tmp_path) == FILES
