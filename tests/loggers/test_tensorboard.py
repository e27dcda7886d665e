"""What TensorBoard itself reads of a log."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from localprop import BadInput
from localprop.loggers import Record, TensorBoard

pytest.importorskip("tensorboard", reason="tensorboard is not installed")


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a folder, by tag, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def follow(folder: Path, done: int, losses: list[float], **more: str) -> None:
    """Log a run from `done` on."""
    log = TensorBoard(folder)
    records: list[Record] = [{"kind": "start", "epoch": done, "config": {"lr": 0.5}}]
    for epoch, loss in enumerate(losses, start=done + 1):
        records.append({"kind": "epoch", "epoch": epoch, "step": 7 * epoch, "loss/0": loss})
    records.append({"kind": "end", "outcome": "finished", "test_accuracy": 0.75})
    for record in records:
        log({**record, **more})


def test_figures_stand_over_the_epochs(tmp_path: Path) -> None:
    follow(tmp_path, 0, [3.0, 2.0])
    assert read_scalars(tmp_path) == {
        "step": [(1, 7), (2, 14)],
        "loss/0": [(1, 3.0), (2, 2.0)],
        "test_accuracy": [(2, 0.75)],
    }


def test_a_resumed_run_hides_the_epochs_after_its_checkpoint(tmp_path: Path) -> None:
    follow(tmp_path, 0, [3.0, 2.0, 1.0])
    follow(tmp_path, 1, [2.5, 1.5])
    assert read_scalars(tmp_path)["loss/0"] == [(1, 3.0), (2, 2.5), (3, 1.5)]


def test_runs_of_a_comparison_have_folders_of_their_own(tmp_path: Path) -> None:
    follow(tmp_path, 0, [3.0], run="greedy/seed-0")
    follow(tmp_path, 0, [2.0], run="greedy/seed-1")
    assert read_scalars(tmp_path / "greedy" / "seed-1")["loss/0"] == [(1, 2.0)]


def test_the_package_and_the_folder_are_asked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is not a writable directory"):
        TensorBoard(tmp_path / "file" / "board")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BadInput, match=r"pip install 'localprop\[tensorboard\]'"):
        TensorBoard(tmp_path / "board")
    assert not (tmp_path / "board").exists()
