"""What is published: an sdist, the wheel built from it, and the command that each installs.

Nothing but lazy-loader is installed beside localprop: torch is large, and `--version` does without.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import localprop

pytest.importorskip("build.__main__", reason="needs the package build: pip install '.[dev]'")
pytestmark = pytest.mark.xdist_group("build")  # one process builds, and all tests read its files

ROOT = Path(__file__).parent.parent
NAME = f"localprop-{localprop.__version__}"
SDIST, WHEEL = f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"


def run(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(environment: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    python = str(environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--retries=1"]
    return subprocess.run([*pip, *words], capture_output=True, text=True, check=False)


def make_environment(folder: Path) -> Path:
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    done = install(folder, "lazy-loader")
    if done.returncode:
        pytest.skip(f"The package index cannot be reached: {done.stderr.splitlines()[-1]}")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("build")
    make_environment(folder / "probe")  # skips where there is no index, which the build needs too
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return folder


def test_the_sdist_has_what_its_tests_need(files: Path) -> None:
    with tarfile.open(files / SDIST) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    assert names >= {"pyproject.toml", "Makefile", "README.md", "LICENSE", "CITATION.cff"}
    assert names >= {"docs/design.md", "scripts/write_stubs.py", "tests/test_build.py"}
    assert not {name.split("/")[0] for name in names} & {".git", ".venv", ".venv-oldest", "dist"}


def test_the_wheel_has_the_whole_package(files: Path) -> None:
    with zipfile.ZipFile(files / WHEEL) as archive:
        names = {name for name in archive.namelist() if name.startswith("localprop/")}
    source = ROOT / "src"
    package = [path for path in (source / "localprop").rglob("*") if path.is_file()]
    assert names == {
        path.relative_to(source).as_posix() for path in package if path.suffix != ".pyc"
    }
    stubs = {"localprop/__init__.pyi", "localprop/methods/__init__.pyi"}
    assert names >= {"localprop/py.typed", *stubs}


@pytest.mark.parametrize("file", [SDIST, WHEEL])
def test_the_command_runs_where_it_is_installed(
    file: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = make_environment(tmp_path / "environment")
    done = install(environment, files / file)
    assert done.returncode == 0, done.stderr
    # Only what is installed counts, not a checkout that these would lead to.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    assert run(environment / "bin" / "localprop", "--version") == f"{NAME.replace('-', ' ')}\n"
