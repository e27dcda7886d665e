"""The architecture: imports go down, methods are named only where they belong, files stay small,
the import stays light.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import localprop
from localprop import methods

ROOT = Path(localprop.__file__).parent
PROJECT = Path(__file__).parent.parent
FILES = sorted(ROOT.rglob("*.py"))
# Packages, and modules of the package itself, in the order of docs/design.md, section 3: each may
# import from itself and from those before it. `__init__` stands for the public names.
ORDER = [
    "errors", "arguments", "user_code", "writing", "loggers", "tasks", "models", "data", "network",
    "rule", "methods", "schedule", "engine", "cost", "ranks", "argument_checks", "checks",
    "planning", "state_problems", "state", "learner", "analysis", "model_check", "hosts",
    "__init__", "training", "experiments", "report", "commands", "cli", "__main__",
]  # fmt: skip
# ranks/launch.py only reads what torchrun has set, and everybody may.
ANYBODY = "ranks.launch"
ONLY_ERRORS = {"tasks", "models", "data"}
LOWEST = {"errors", "arguments", "user_code"}
NAME_NO_METHOD = {
    "tasks",
    "network",
    "rule",
    "schedule",
    "engine",
    "cost",
    "ranks",
    "argument_checks",
    "checks",
    "learner",
    "model_check",
}


def package_of(path: Path) -> str:
    """The package, or the module at the top, that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def imported(path: Path) -> set[str]:
    """The modules of localprop that a file imports, without the `localprop.` before.

    "" stands for the package itself.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.partition(".")[2] for name in found if name.split(".")[0] == "localprop"}


def target_of(name: str) -> str:
    """The package that an imported name lives in; a name that is no file stands in `__init__`."""
    first = name.split(".")[0]
    known = (ROOT / first).is_dir() or (ROOT / f"{first}.py").exists()
    return first if first and known else "__init__"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_down(path: Path) -> None:
    own = package_of(path)
    allowed = {own, *LOWEST} if own in ONLY_ERRORS else {*ORDER[: ORDER.index(own) + 1]}
    assert {target_of(name) for name in imported(path) if not name.startswith(ANYBODY)} <= allowed


def test_every_package_has_its_place() -> None:
    assert {package_of(path) for path in FILES} == {*ORDER}


def test_no_module_is_imported_in_a_circle() -> None:
    module_of = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    arrows = {
        name: {
            m
            for m in module_of
            if m != name
            for i in imported(path)
            if i == m or i.startswith(f"{m}.")
        }
        for name, path in module_of.items()
    }
    while ends := [name for name, targets in arrows.items() if not targets]:
        arrows = {name: targets - {*ends} for name, targets in arrows.items() if name not in ends}
    assert arrows == {}


def mentioned(path: Path) -> set[str]:
    """Identifiers and strings of a file, its docstrings and comments left out."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case (
                ast.Name(id=name)
                | ast.Attribute(attr=name)
                | ast.alias(name=name)
                | ast.arg(arg=name)
            ):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.keyword(arg=str(name)):
                found.add(name)
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                found.add(text)
    return {part for name in found for part in (name, *name.split("."))}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_methods_are_named_only_where_they_belong(path: Path) -> None:
    if package_of(path) in NAME_NO_METHOD:
        assert mentioned(path) & {*methods.__all__} == set()


def test_the_search_for_names_finds_them() -> None:
    assert set().union(*map(mentioned, (ROOT / "methods").glob("*.py"))) >= {*methods.__all__}


@pytest.mark.parametrize(
    "path", [*FILES, *sorted((PROJECT / "tests").rglob("*.py"))], ids=lambda path: path.name
)
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


HEAVY = ["torchvision", "timm", "sklearn", "matplotlib", "rich"]


def test_the_import_is_light() -> None:
    loaded = f"[name for name in {HEAVY} if name in sys.modules]"
    program = f"import sys, localprop; localprop.Learner; print({loaded})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_engine_knows_a_wiring_and_not_how_it_was_made() -> None:
    """It runs without the parts of rules, without probes, models and data."""
    program = (
        "import sys, localprop.engine.engine; "
        "print(*[name for name in sys.modules if name.startswith('localprop.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "localprop.schedule.wiring" in loaded
    assert not {name for name in loaded if name.split(".")[1] in {"methods", "models", "data"}}
    parts = {"rule.rule", "rule.auxiliary", "rule.credit", "network.probe", "schedule.wire"}
    assert not loaded & {f"localprop.{part}" for part in parts}


def test_help_does_without_torch() -> None:
    program = (
        "import sys; from localprop.cli.main import main; main(['--help']); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_the_stubs_are_fresh() -> None:
    words = [sys.executable, str(PROJECT / "scripts" / "write_stubs.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", localprop.__all__)
def test_public_names_exist_and_are_documented(name: str) -> None:
    assert getattr(localprop, name).__doc__
