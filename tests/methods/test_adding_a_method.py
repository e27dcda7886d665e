"""docs/adding-a-method.md to the letter: a method of one file, outside the package and inside."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cli import run_command

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text()
# In order: the words behind "python", and the code.
BLOCKS = [
    (words.strip(), re.sub(r"^ {3}", "", code, flags=re.MULTILINE) if words == " methods" else code)
    for words, code in re.findall(r"```python( [\w.]+)?\n(.*?)```", PAGE, re.DOTALL)
]
FILE = "\n\n".join(code.strip() for words, code in BLOCKS if words == "two_ahead.py") + "\n"
COMMANDS = re.findall(r"^ {4}(localprop .*)$", PAGE, re.MULTILINE)


# What runs in a copy of the repository with the method inside. One process imports torch once.
INSIDE = """
import shlex, sys
import pytest
import localprop as lp
from localprop.cli.main import main

print(lp.__file__, 'two_ahead' in lp.methods.__all__, 'two_ahead' in dir(lp), end=' ')
print(lp.two_ahead().credit, lp.AverageHead())
for line in sys.argv[1:]:
    print('#', line)
    assert main(shlex.split(line)[1:]) == 0
print('# tests', flush=True)
battery = ['tests/methods/test_battery.py', 'tests/methods/test_parse.py']
words = ['-k', 'two_ahead or sees_all_methods', '-rA', '-p', 'no:cacheprovider']
sys.exit(pytest.main([*battery, *words]))
"""


def start(folder: Path, *words: str, path: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, with modules in `path` before all others."""
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def run(folder: Path, *words: str, path: str) -> str:
    """What a program prints that ends well."""
    done = start(folder, *words, path=path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with the file in it."""
    (tmp_path / "two_ahead.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds to it
    yield tmp_path
    sys.modules.pop("two_ahead", None)


def make_file_inside() -> str:
    """The file as the page says that it stands in the package."""
    (header,) = [code for words, code in BLOCKS if words == "methods"]
    return re.sub(r"\blp\.", "", FILE.replace("import localprop as lp\n", header))


def test_a_method_outside_of_the_package(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line for line in COMMANDS if "two_ahead:" in line or "--resume" in line]
    names = [line.split()[1] for line in commands]
    assert names == ["show", "train", "train", "compare", "simulate"]
    done = [run_command(capsys, *shlex.split(line)[1:]) for line in commands]
    assert [code for code, _, _ in done] == [0] * 5
    shown, trained, resumed, compared, simulated = (out for _, out, _ in done)
    assert "loss2 a" in shown
    assert trained == resumed != ""
    assert "mine" in compared
    assert "two_ahead:two_ahead()" in simulated
    config = json.loads((outside / "runs/two_ahead/config.json").read_text())
    assert config["method"] == "two_ahead:two_ahead(weight=0.25)"


def test_the_trials_of_the_page(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [code for words, code in BLOCKS if words == ""]
    assert len(trials) == 3
    monkeypatch.syspath_prepend(outside)
    exec("\n".join(trials), {})


def test_the_program_finds_a_file_where_it_is_started(outside: Path) -> None:
    """Without a path. It refuses a wrong argument, and so it knows the right ones."""
    script = Path(sys.executable).parent / "localprop"
    words = ["train", "--method", "two_ahead:two_ahead(weigh=1)"]
    done = start(outside, str(script), *words, path=str(ROOT / "src"))
    assert done.returncode == 2
    assert "did you mean weight? It has weight, spread" in done.stderr


@pytest.mark.timeout(900)
def test_a_method_inside_of_the_package(tmp_path: Path) -> None:
    """One new file, and generated stubs; the tests that run over all methods find it."""
    for name in ("src", "tests", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "src/localprop/methods/two_ahead.py").write_text(make_file_inside())
    source = str(tmp_path / "src")
    run(tmp_path, sys.executable, "scripts/write_stubs.py", path=source)
    commands = [line for line in COMMANDS if "'two_ahead(" in line]
    assert len(commands) == 1
    commands += [
        "localprop train --out runs/inside --resume",
        "localprop compare --methods 'two_ahead()' --model mlp --epochs 2 --limit 200 --seeds 1 "
        "--rounds 2",
    ]
    printed = run(tmp_path, sys.executable, "-c", INSIDE, *commands, path=source)
    listed, trained, resumed, compared, tested = re.split(r"^# .*\n", printed, flags=re.MULTILINE)
    assert listed.startswith(source)
    assert listed.split(maxsplit=1)[1] == "True True TwoAhead(weight=0.5) AverageHead()\n"
    assert trained == resumed != ""
    assert "two_ahead()" in compared
    assert len(re.findall(r"^PASSED .*two_ahead", tested, re.MULTILINE)) >= 6
    assert re.search(r"^PASSED .*sees_all_methods", tested, re.MULTILINE)
