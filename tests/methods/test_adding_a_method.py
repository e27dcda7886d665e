"""docs/adding-a-method.md to the letter: a method of one file, outside the package and inside."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text()
# In order: the words behind "python", and the code.
BLOCKS = [
    (words.strip(), re.sub(r"^ {3}", "", code, flags=re.MULTILINE) if words == " methods" else code)
    for words, code in re.findall(r"```python( [\w.]+)?\n(.*?)```", PAGE, re.DOTALL)
]
FILE = "\n\n".join(code.strip() for words, code in BLOCKS if words == "two_ahead.py") + "\n"
COMMANDS = re.findall(r"^ {4}(localprop .*)$", PAGE, re.MULTILINE)


def run(folder: Path, *words: str, path: str = "") -> str:
    """Run a command in a folder, with modules in `path` before all others."""
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def run_python(folder: Path, code: str, path: str = "") -> str:
    return run(folder, sys.executable, "-c", code, path=path)


def run_commands(folder: Path, commands: list[str], path: str = "") -> list[str]:
    script = Path(sys.executable).parent / "localprop"
    return [run(folder, str(script), *shlex.split(line)[1:], path=path) for line in commands]


def make_file_inside() -> str:
    """The file as the page says that it stands in the package."""
    (header,) = [code for words, code in BLOCKS if words == "methods"]
    return re.sub(r"\blp\.", "", FILE.replace("import localprop as lp\n", header))


@pytest.mark.timeout(600)
def test_a_method_outside_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "two_ahead.py").write_text(FILE)
    trials = [code for words, code in BLOCKS if words == ""]
    assert len(trials) == 3
    run_python(tmp_path, "\n".join(trials), path=str(tmp_path))
    outside = [line for line in COMMANDS if "two_ahead:" in line or "--resume" in line]
    assert [line.split()[1] for line in outside] == ["show", "train", "train", "compare", "plan"]
    # Without a path: the command finds the file where it is started.
    shown, trained, resumed, compared, planned = run_commands(tmp_path, outside)
    assert "loss2 a" in shown
    assert trained == resumed != ""
    assert "mine" in compared
    assert "two_ahead:two_ahead()" in planned
    config = json.loads((tmp_path / "runs/two_ahead/config.json").read_text())
    assert config["method"] == "two_ahead:two_ahead(weight=0.25)"


@pytest.mark.timeout(900)
def test_a_method_inside_of_the_package(tmp_path: Path) -> None:
    """One new file, and generated stubs; the tests that run over all methods find it."""
    for name in ("src", "tests", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "src/localprop/methods/two_ahead.py").write_text(make_file_inside())
    source = str(tmp_path / "src")
    run(tmp_path, sys.executable, "scripts/write_stubs.py", path=source)
    listed = run_python(
        tmp_path,
        "import localprop as lp; print(lp.__file__, 'two_ahead' in lp.methods.__all__, "
        "'two_ahead' in dir(lp), lp.two_ahead().credit, lp.AverageHead())",
        path=source,
    )
    assert listed.startswith(source)
    assert listed.split(maxsplit=1)[1] == "True True TwoAhead(weight=0.5) AverageHead()\n"
    inside = [line for line in COMMANDS if "'two_ahead(" in line]
    resume = "localprop train --out runs/inside --resume"
    compare = "localprop compare --methods 'two_ahead()' --model mlp --epochs 2 --limit 200"
    (trained, resumed, compared) = run_commands(
        tmp_path, [*inside, resume, f"{compare} --seeds 1 --rounds 2"], path=source
    )
    assert trained == resumed != ""
    assert "two_ahead()" in compared
    battery = ("tests/methods/test_battery.py", "tests/methods/test_parse.py")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *battery]
    found = run(tmp_path, *words, "-k", "two_ahead or battery", "-rA", path=source)
    assert len(re.findall(r"^PASSED .*two_ahead", found, re.MULTILINE)) >= 6
