"""The project around the code: its version, its pages for contributors, and what it supports."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import localprop
from localprop.training.environment import describe_environment
from tests.test_architecture import ORDER

ROOT = Path(__file__).parent.parent
PACKAGES = {path.parent.name for path in ROOT.glob("src/localprop/*/__init__.py")}


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def read_pyproject() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


def test_results_say_nothing_of_the_machine_they_were_made_on() -> None:
    """A path there leads nowhere elsewhere. What runs is named without its folder."""
    results = [*ROOT.glob("benchmarks/results/*.json*")]
    assert len(results) > 8
    for path in results:
        commands = re.findall(r'"command": \[[^]]*\]', path.read_text("utf-8"))
        assert not [each for each in commands if '"/' in each], path.name
    program = describe_environment()["command"][0]
    assert Path(program).name == program


def find_all(pattern: str, name: str) -> list[str]:
    return re.findall(pattern, read(name), re.MULTILINE)


def list_screen() -> list[str]:
    """What the architecture's screen in CONTRIBUTING.md names, from the top to the bottom."""
    screen = re.search(r"^    cli .*?\n\n", read("CONTRIBUTING.md"), re.DOTALL | re.MULTILINE)
    assert screen
    return [line.split()[0].removesuffix(".py") for line in screen[0].splitlines() if line]


def test_the_version_stands_in_one_place() -> None:
    project = read_pyproject()
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/localprop/__init__.py"
    assert find_all(r'^__version__ = "(.+)"$', "src/localprop/__init__.py") == [
        localprop.__version__
    ]


def test_the_citation_has_the_version() -> None:
    assert find_all(r"^version: (.+)$", "CITATION.cff") == [localprop.__version__]


def test_the_command_prints_the_version() -> None:
    program = (
        "import sys; from localprop.cli.main import main; main(['--version']); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"localprop {localprop.__version__}", "False"]


def test_the_changelog_has_unreleased_changes() -> None:
    sections = re.split(r"^## ", read("CHANGELOG.md"), flags=re.MULTILINE)[1:]
    assert sections[0].startswith("[Unreleased]\n")


def test_contributors_are_told_of_targets_that_make_has() -> None:
    targets = {*find_all(r"^([\w-]+):", "Makefile")}
    named = {*find_all(r"(?:`|^    )make ([\w-]+)", "CONTRIBUTING.md")}
    assert named == targets
    assert {*find_all(r"^# make ([\w-]+)", "Makefile")} == targets


def test_the_screen_of_the_architecture_has_every_package_in_its_order() -> None:
    assert {*list_screen()} >= PACKAGES
    assert list_screen()[::-1] == [name for name in ORDER if "__" not in name]


def test_continuous_integration_runs_what_is_supported() -> None:
    project = read_pyproject()["project"]
    named = [re.search(r"Python :: (\d\.\d+)$", line) for line in project["classifiers"]]
    pythons = [match[1] for match in named if match]
    assert project["requires-python"] == f">={pythons[0]}"
    assert sorted({*find_all(r'python: "([\d.]+)"', ".github/workflows/ci.yml")}) == pythons
    targets = {*find_all(r"target: ([\w-]+) ", ".github/workflows/ci.yml")}
    assert targets == {"test", "test-oldest", "demo"}
    assert targets <= {*find_all(r"^([\w-]+):", "Makefile")}


def test_the_oldest_torch_is_that_of_the_requirement() -> None:
    dependencies = read_pyproject()["project"]["dependencies"]
    oldest = [d.removeprefix("torch>=") for d in dependencies if d.startswith("torch>=")]
    assert oldest == find_all(r"'torch==([\d.]+)\.\*'", "Makefile")
