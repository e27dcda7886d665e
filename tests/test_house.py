"""The house: imports go downwards, papers' names stay where they belong, files stay small, the import stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import localprop

ROOT = Path(localprop.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# A floor may import from itself and from those before it.
FLOORS = [
    {"errors"},
    {"models", "data"},
    {"network"},
    {"rule"},
    {"methods"},
    {"step"},
    {"ranks"},
    {"arguments"},
    {"learner"},
    {"__init__"},
    {"training"},
    {"recipes"},
    {"report"},
    {"cli"},
    {"__main__"},
]
LEAVES = {"models", "data"}  # these know of nothing but errors
METHODS = {"backlink", "contsup", "auglocal", "interlocking", "predsim", "infopro", "trgl", "hpff", "pathak", "lopt"}
MAY_NAME_METHODS = {"methods", "__init__", "recipes", "cli", "report"}


def floor_of(path: Path) -> str:
    """The package or file at the top that a file belongs to; the command line may fill several files, cli_train.py is one."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "cli" if first.startswith("cli_") else first


def height(floor: str) -> int:
    return next(i for i, same in enumerate(FLOORS) if floor in same)


def imported(path: Path) -> set[str]:
    """The floors of this package that a file imports; `from localprop import rule` counts as rule."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {_target(name.split(".")[1:]) for name in names if name.split(".")[0] == "localprop"}
    return found


def _target(parts: list[str]) -> str:
    """The floor of localprop.a.b.c; a name that is no file stands in `__init__`."""
    here = ROOT / parts[0] if parts else ROOT / "__init__"
    return floor_of(here) if here.is_dir() or here.with_suffix(".py").exists() else "__init__"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_downwards(path: Path) -> None:
    own = floor_of(path)
    allowed = {own, *(name for floor in FLOORS[: height(own)] for name in floor)}
    if own in LEAVES:
        allowed = {own, "errors"}
    assert imported(path) <= allowed


def test_every_floor_is_known() -> None:
    known = set().union(*FLOORS)
    assert {floor_of(path) for path in FILES} <= known


def mentioned(path: Path) -> set[str]:
    """Methods that a file names: as an identifier, an attribute, an argument, or a string that is no docstring."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) | ast.arg(arg=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.keyword(arg=str(name)):
                found.add(name)
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                found.add(text)
    return {method for method in METHODS for name in found if method in name.lower()}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_methods_are_named_only_where_they_belong(path: Path) -> None:
    if floor_of(path) not in MAY_NAME_METHODS:
        assert mentioned(path) == set()


def test_the_search_for_names_finds_them() -> None:
    assert set().union(*map(mentioned, (ROOT / "methods").glob("*.py"))) == METHODS


@pytest.mark.parametrize("path", [*FILES, *sorted(Path(__file__).parent.glob("*.py"))], ids=lambda path: path.name)
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


HEAVY = ["torchvision", "timm", "sklearn", "matplotlib", "rich"]


def test_the_import_is_light() -> None:
    program = f"import sys, localprop; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", localprop.__all__)
def test_public_names_exist_and_are_documented(name: str) -> None:
    assert getattr(localprop, name).__doc__
