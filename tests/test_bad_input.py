"""Input that makes no sense is refused in our own words, or works.

benchmarks/bad_input.py tries more of the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import bad_calls
import bad_command_lines
import bad_input
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from localprop.cli import main as cli

few = settings(max_examples=50, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files that command lines and calls read."""
    folder = tmp_path_factory.mktemp("made")
    bad_command_lines.make_files(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _little_memory() -> Iterator[None]:
    """In little memory, as sizes are refused that it does not hold."""
    with bad_input.limited_memory():
        yield


@few
@given(seed=seeds)
@pytest.mark.filterwarnings("ignore")
def test_command_lines(made: Path, seed: int) -> None:
    words, outcome = bad_input.try_command_line(seed, made)
    assert not outcome.fault, words


@few
@given(seed=seeds)
@pytest.mark.filterwarnings("ignore")
def test_calls(made: Path, seed: int) -> None:
    text, outcome = bad_input.try_call(seed, made)
    assert not outcome.fault, text


@pytest.mark.filterwarnings("ignore")
def test_the_calls_work_with_usual_arguments(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise they would be refused for another reason than the odd argument."""
    monkeypatch.chdir(tmp_path)
    for targets in bad_calls.list_targets(made):
        for target in targets:
            target.use(target.call(**target.usual()))


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--model", "mlp:1" + "0" * 30],
        ["train", "--model", "timm:resnet18,checkpoint_path='weights.pt'"],
        ["train", "--seed", str(2**64)],
        ["train", "--phases", f"greedy() for {'1' * 5000}"],
        ["train", "--phases", "; ".join(["greedy() for 1"] * 10_000)],
        ["simulate", "--model", "mlp", "--batch", str(10**11)],
        ["plan", "--model", "resnet8", "--batch", str(10**23)],
        ["check", "resnet8", "--classes", str(10**20)],
        ["check", "resnet8", "--input", "3,8,x"],
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_sizes_beyond_all_measure_and_files_with_code(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bad_input.run_command_line(words) == bad_input.Outcome("exit 2")


def test_a_terminal_obeys_no_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    red = "\x1b[31mred"
    for words in (["train", "--init", red], ["evaluate", red], ["show", "--method", red], [red]):
        assert cli.main(words) == 2
        message = capsys.readouterr().err
        assert red not in message
        assert "\\x1b[31mred" in message


def test_a_file_with_code_is_refused_without_advice_to_run_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": sys.exit}, tmp_path / "code.pt")
    assert cli.main(["train", "--model", "mlp", "--init", str(tmp_path / "code.pt")]) == 2
    message = capsys.readouterr().err
    assert "asks for code to be run" in message
    assert "weights_only" not in message
