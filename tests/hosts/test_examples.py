"""The examples run as they are, offline, and learn."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

pytestmark = pytest.mark.filterwarnings("ignore")


def run(name: str, capsys: pytest.CaptureFixture[str]) -> list[float]:
    """The figures that an example prints last in its lines."""
    AcceleratorState._reset_state(True)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    return [float(n) for n in re.findall(r"^(?:accuracy|loss \w+) ([\d.]+)$", printed, re.M)]


@pytest.mark.parametrize("name", ["lightning_module", "accelerate_loop", "fabric_loop"])
def test_examples_classify_digits(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (accuracy,) = run(name, capsys)
    assert accuracy > 0.5  # chance is 0.1


def test_the_example_of_the_trainer_learns_a_language(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = run("trainer_of_transformers", capsys)
    assert after < 0.8 * before


def test_every_example_is_run() -> None:
    files = Path(__file__), EXAMPLES.parent / "tests" / "test_examples.py"
    tested = {name for file in files for name in re.findall(r'"(\w+)"', file.read_text())}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
