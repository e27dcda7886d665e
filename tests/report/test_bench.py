"""`localprop bench` on small networks."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cli import run_command


@pytest.mark.parametrize("what", ["memory", "speed"])
def test_benchmarks(capsys: pytest.CaptureFixture[str], what: str) -> None:
    flags = "--model resnet8 --modules 4 --batch-size 8 --rounds 2 --device cpu"
    words = ["bench", what, *flags.split()]
    code, out, _ = run_command(capsys, *words)
    assert code == 0
    assert "plain PyTorch loop" in out
    code, out, _ = run_command(capsys, *words, "--json", "--methods", "greedy()")
    assert json.loads(out)["rows"][-1]["method"] == "greedy()"
    # InfoPro looks at the pixels, which are random here.
    assert run_command(capsys, *words, "--methods", "infopro()")[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        "--momentum nan",
        "--input 3,0,8",
        "--input big",
        "--modules 0",
        "--model resnet9",
        "--model transformer",
        "--model transformer --input 16",
    ],
)
@pytest.mark.parametrize("command", ["bench memory", "simulate"])
def test_bad_values_are_refused(
    capsys: pytest.CaptureFixture[str], command: str, words: str
) -> None:
    code, _, err = run_command(capsys, *command.split(), *words.split())
    assert code == 2
    assert "Traceback" not in err


def test_all_problems_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--input 3,x --rounds 0 --modules 0 --momentum 2 --methods greedi()"
    code, _, err = run_command(capsys, "bench", "memory", *words.split())
    assert (code, err.count("\n- ")) == (2, 5)
    assert "input_shape='3,x' must be sizes of 1 or more, such as --input 3,32,32." in err


def test_every_method_is_checked_before_the_first_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "--model resnet8 --modules 2 --methods auglocal(depth=9) auglocal(depth=8)"
    _, _, err = run_command(capsys, "bench", "speed", *words.split())
    assert err.count("use more modules") == 2


def test_networks_of_tokens_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run_command(capsys, "simulate", "--model", "transformer:width=8")
    assert "only measure image networks" in err


def test_a_step_that_does_not_fit_fails_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench memory --batch-size 99999999999 --device cpu"
    code, _, err = run_command(capsys, *words.split())
    assert code == 2
    assert "A batch of 99999999999 images of (3, 32, 32) cannot be built" in err
    assert "choose smaller sizes" in err


THEIRS = """
from torch import nn, optim

def make_steps(make_network, batch):
    model, (images, labels) = make_network(), batch
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step():
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return {"theirs": step}
"""
SMALL = "bench speed --model resnet8 --modules 2 --batch-size 4 --rounds 2 --device cpu"


def test_other_implementations_run_in_the_same_rounds(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(THEIRS)
    words = [*SMALL.split(), "--methods", "greedy()", "--against", str(file), "--json"]
    code, out, _ = run_command(capsys, *words)
    assert code == 0
    checkpointed, theirs, greedy = json.loads(out)["rows"]
    assert [checkpointed["method"], theirs["method"]] == ["torch.utils.checkpoint", "theirs"]
    # A block's forward runs twice, of three parts: forward and two halves of the backward.
    assert 1.25 < checkpointed["operations"] < 1.34
    assert theirs["operations"] is None
    assert greedy["peak_bytes"] == greedy["predicted_bytes"] < checkpointed["peak_bytes"] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no 'make_steps'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def make_steps(make_network, batch):\n    return make_network()", "functions by name"),
        ("def make_steps(make_network):\n    return {}", "make_steps of"),
    ],
)
def test_a_file_without_steps_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(text)
    words = [*SMALL.split(), "--methods", "greedy()", "--against", str(file)]
    code, _, err = run_command(capsys, *words)
    assert code == 2
    assert message in err


def test_memory_is_not_compared_with_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_command(capsys, "bench", "memory", "--against", "theirs.py")
    assert code == 2
    assert "bench speed" in err


def test_the_tables_of_a_gpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make bench-gpu`, here on a CPU and small networks. A run that was stopped goes on."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    gpu: Any = importlib.import_module("gpu")
    file = tmp_path / "gpu.jsonl"
    words = [str(file), "--tiny", "--rounds", "2", "--device"]
    assert gpu.main([*words, "cpu", "--minutes", "0"]) == 1  # the first part may always begin
    first = file.read_text()
    assert first.count("\n") == 1
    assert capsys.readouterr().err.count("no time is left") == 9
    assert gpu.main([*words, "cpu"]) == 0
    text = file.read_text()
    assert text.startswith(first)
    parts = {line["part"]: line for line in map(json.loads, text.splitlines())}
    assert len(parts) == 10
    assert parts["ResNet-8, memory, bf16"]["rows"][1]["method"].endswith(" with bf16")
    for name, part in parts.items():
        if "memory" in name:
            assert all(abs(row["error"]) < 0.01 for row in part["rows"])
    capsys.readouterr()
    assert gpu.main([*words, "cpu", "--table"]) == 0
    assert capsys.readouterr().out.count("plain PyTorch loop") >= 10
    assert gpu.main([str(tmp_path / "none"), "--tiny", "--device", "cuda:77"]) == 1
    assert "is not available" in capsys.readouterr().err
