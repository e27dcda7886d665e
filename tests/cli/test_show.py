"""`localprop show`: credit, schedule and memory as data, and recipes without their data."""

from __future__ import annotations

import json

import pytest

from localprop.data.sources import TORCHVISION
from tests.helpers.cli import run_command


def test_a_run_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    words = "show --model resnet8 --method backlink() --device cpu --json"
    code, out, _ = run_command(capsys, *words.split())
    shown = json.loads(out)
    assert code == 0
    assert shown["credit"][1] == "loss1 T|T|.|."
    assert shown["schedule"].startswith("0F 0L 1F 1L 1B.0 0B 2F")
    assert max(shown["module_bytes"]) == shown["peak_bytes"]


def test_a_recipe_without_its_data(capsys: pytest.CaptureFixture[str]) -> None:
    words = "show resnet32_cifar10_dgl_k4 --root /nowhere --batch-size 8"
    code, out, _ = run_command(capsys, *words.split())
    assert code == 0
    assert "published  not claimed, in part our reading: test error 11.48 +- 0.20 %" in out
    assert "loss3 ....|....|....|TTTT" in out
    assert "Predicted peak of a step at batch 8" in out


def test_a_recipe_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    words = "show resnet32_cifar10_dgl_k4 --json --batch-size 8"
    code, out, _ = run_command(capsys, *words.split())
    assert code == 0
    shown = json.loads(out)
    assert (shown["recipe"], shown["config"]["cuts"]) == ("resnet32_cifar10_dgl_k4", [3, 7, 11])


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ("--augment rotate --lr -1 --limit 0", ["'rotate'", "lr=-1.0", "limit is 0"]),
        ("--mean 0.5,0.5 --std 0.5", ["mean=(0.5, 0.5) are 2 numbers for 3 channel(s)"]),
        ("--batch-size -5 --lr 0", ["batch_size=-5", "lr=0.0"]),
    ],
)
def test_show_refuses_what_train_would(
    capsys: pytest.CaptureFixture[str], words: str, messages: list[str]
) -> None:
    code, _, err = run_command(capsys, "show", "resnet32_cifar10_dgl_k4", *words.split())
    assert code == 2
    assert [message for message in messages if message not in err] == []


@pytest.mark.parametrize("data", sorted(TORCHVISION))
def test_a_named_data_set_need_not_be_there(capsys: pytest.CaptureFixture[str], data: str) -> None:
    words = f"show --data {data} --root /nowhere --model mlp:8 --batch-size 8 --device cpu"
    code, out, err = run_command(capsys, *words.split())
    assert (code, err) == (0, "")
    assert "Predicted peak of a step at batch 8" in out


@pytest.mark.parametrize("data", ["gone.npz", "gone.txt", "folder:gone", "folder:imagenet"])
def test_files_and_folders_must_be_there(capsys: pytest.CaptureFixture[str], data: str) -> None:
    code, _, err = run_command(capsys, "show", "--data", data, "--root", "/nowhere")
    assert code == 2
    assert "/nowhere" in err


def test_notes_are_in_the_text_and_in_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["show", "--model", "mlp:8", "--method", "interlocking(wise=9)", "--device", "cpu"]
    note = "InterlockingCredit(wise=9) is the same as wise=2 on this network."
    assert f"\nNote: {note}\n" in run_command(capsys, *words)[1]
    assert json.loads(run_command(capsys, *words, "--json")[1])["notes"] == [note]


def test_a_recipe_shows_the_values_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = "show resnet32_cifar10_dgl_k4 --epochs 2 --batch-size 8"
    _, out, _ = run_command(capsys, *words.split())
    run = next(line for line in out.splitlines() if line.startswith("run  "))
    assert "epochs=2" in out.partition("paper")[0]
    assert "epochs=200" not in out
    assert "milestones=(150, 225)" not in run
