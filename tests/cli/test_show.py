"""`localprop show`: credit, schedule and memory as data, and recipes without their data."""

from __future__ import annotations

import json

import pytest

from tests.helpers.cli import run_command


def test_a_run_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    words = "show --model resnet8 --method backlink() --device cpu --json"
    code, out, _ = run_command(capsys, *words.split())
    shown = json.loads(out)
    assert code == 0
    assert shown["credit"][1] == "loss1 T|T|.|."
    assert shown["schedule"].startswith("0F 0L 0H 1F")
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
