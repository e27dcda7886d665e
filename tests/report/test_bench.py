"""`localprop bench` on small networks."""

from __future__ import annotations

import json

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
    assert json.loads(out)["rows"][0]["method"] == "greedy()"
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
    assert code == 1
    assert "may fit" in err
