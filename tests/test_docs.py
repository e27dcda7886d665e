"""What the documents promise: the README's Python and commands, and every docstring example."""

from __future__ import annotations

import doctest
import importlib
import json
import re
from collections.abc import Sized
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torchvision
import write_methods
import write_reference
from method_cards import read_costs

import localprop
from localprop import experiments
from localprop.data import load
from localprop.data.arrays import Split
from localprop.methods.names import find_methods
from localprop.training.build import prepare
from localprop.training.config import Config
from localprop.training.trainer import EpochReport

ROOT = Path(__file__).parent.parent
PACKAGE = Path(localprop.__file__).parent
MODULES = sorted(
    ".".join(["localprop", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(
        ".__init__"
    )
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)


PREPARED = ("dataset", "learner", "images", "labels", "test")


def make_example_names(source: str) -> dict[str, object]:
    """The imports and objects that examples may use without making them.

    The data and a learner are made only where the source of the examples names them.
    """
    config = Config(model="mlp", epochs=2)
    names: dict[str, object] = {
        "torch": torch,
        "nn": torch.nn,
        "np": numpy,
        "lp": localprop,
        "Config": Config,
        "prepare": prepare,
        "load": load,
        "config": config,
        "report": EpochReport(1, 0.1, (0,), (1.0,), 0.5, 1.0),
    }
    if {*PREPARED}.isdisjoint(re.findall(r"\w+", source)):
        return names
    dataset, learner = prepare(config)
    assert isinstance(dataset.train, Split)
    images, labels = dataset.train.images, dataset.train.labels
    prepared = (dataset, learner, images, labels, dataset.test)
    return names | dict(zip(PREPARED, prepared, strict=True))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    found = doctest.DocTestFinder().find(module)
    source = "".join(example.source for each in found for example in each.examples)
    names = make_example_names(source)
    usable = {key: value for key, value in names.items() if not hasattr(module, key)}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(module, optionflags=flags, extraglobs=usable)
    assert failed == 0


def test_python_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks are one program, which leaves two files."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)
    losses = names["losses"]
    assert isinstance(losses, Sized)
    assert len(losses) == 16
    assert names["epoch"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"last.safetensors", "network.pt"}


def test_the_loops_of_the_page_around_the_step() -> None:
    """All blocks are one program. An existing optimizer trains heads, and the average follows."""
    page = (ROOT / "docs" / "around-the-step.md").read_text()
    names: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), names)
    owned = {name for group in names["learner"].optimizer_groups() for name in group.parameters}
    assert owned == {name for name, _ in names["learner"].named_parameters()}
    assert names["ema"].n_averaged == 2


def test_the_page_of_analyses() -> None:
    """Its block runs, and its table has the figures of the file."""
    page = (ROOT / "docs" / "analysis.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(block, {})
    file = ROOT / "benchmarks" / "results" / "digits-analysis.json"
    found = json.loads(file.read_text())["methods"]
    shown = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].startswith(("probe", "cosine", "CKA")):
            shown[cells[0]] = cells[1:]
    assert len(shown) == 7
    for label, cells in shown.items():
        what, method = label.split()[0].strip(","), re.findall(r"\w+\(\)", label)[0]
        figures = found[method]
        values = {
            "probe": [f"{100 * value:.1f}" for value in figures["probe_accuracy"]],
            "cosine": [f"{value:.2f}" for value in figures["cosine"]],
            "CKA": [f"{row[k]:.2f}" for k, row in enumerate(figures["cka_with_end_to_end"])],
        }
        assert cells == values[what], label


@pytest.mark.parametrize("name", ["README.md", "docs/index.md"])
def test_the_diff_of_a_first_page_runs_before_and_after(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first page of the site says what it prints."""
    page = (ROOT / name).read_text()
    (diff,) = re.findall(r"```diff\n(.*?)```", page, re.DOTALL)
    lines = diff.splitlines()
    assert {line[:2] for line in lines} == {"+ ", "- ", "  "}
    samples = 64 if name == "docs/index.md" else 4
    loader = [(torch.randn(samples, 3, 32, 32), torch.randint(10, (samples,)))]
    for sign in "-+":
        names: dict[str, object] = {"torch": torch, "torchvision": torchvision, "loader": loader}
        exec("\n".join(line[2:] for line in lines if line[0] in f"{sign} "), names)
        assert ("losses" in names) == (sign == "+")
    printed = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert capsys.readouterr().out == "".join(printed)


def test_the_readme_counts_the_recipes() -> None:
    """A recipe claims the paper's figure if it has one and contains no reading of ours."""
    found = [experiments.find(name) for name in experiments.names()]
    with_figure = [recipe for recipe in found if recipe.published]
    claimed = [recipe for recipe in with_figure if not recipe.readings]
    counts = (
        f"{len(found)} named configurations, {len(with_figure)} with the paper's figure, "
        f"{len(claimed)} of them claimed"
    )
    text = " ".join((ROOT / "README.md").read_text().split())
    assert counts in text
    # Nowhere else does the README say how many recipes or methods there are.
    assert re.findall(r"\b\d+ (?:named|published|recipes|methods|experiments)\b", text) == [
        f"{len(found)} named"
    ]


def test_the_readme_names_the_methods_that_ranks_refuse() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    refused = re.findall(r"^\| \[`(\w+)`\].*one process only \|$", page, re.MULTILINE)
    assert refused == ["man", "man_plus", "sgr", "solo"]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert "all methods but [four](docs/not-good-for.md#limits)" in text
    limits = " ".join((ROOT / "docs" / "not-good-for.md").read_text().split())
    assert "SGR needs gradients of other modules, and MAN, MAN++ and SOLO need" in limits


def test_the_pages_of_methods_are_up_to_date() -> None:
    """Costs are those of the result file. Run `python docs/write_methods.py` after a change."""
    pages = write_methods.build_pages()
    assert [path.name for path, text in pages.items() if path.read_text() != text] == []
    written = {path for path in (ROOT / "docs" / "methods").rglob("*") if path.is_file()}
    assert written == {path for path in pages if path.name != "methods.md"}
    assert read_costs().keys() == find_methods().keys()


@pytest.mark.long
def test_the_costs_of_methods_are_up_to_date() -> None:
    """Run `python docs/write_methods.py --costs` after a change."""
    predicted = write_methods.predict_costs()
    stored = read_costs()
    assert {name: cost.format_cells() for name, cost in predicted.items()} == {
        name: cost.format_cells() for name, cost in stored.items()
    }


def test_the_pages_of_the_reference_are_up_to_date() -> None:
    """Run `python docs/write_reference.py` after a change of an `__all__`."""
    pages = write_reference.build_pages()
    assert {path: path.read_text() for path in (ROOT / "docs" / "reference").iterdir()} == pages


GUIDES = (
    "which-method",
    "your-loop",
    "will-it-fit",
    "several-ranks",
    "reproduce",
    "not-good-for",
)


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_prints_what_it_says(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The blocks of Python are one program; a block of text behind one is what that one prints."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / f"{name}.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", page, re.DOTALL)
    assert blocks
    assert page.count("```text") == sum(bool(expected) for _, expected in blocks)
    names: dict[str, object] = {}
    for code, expected in blocks:
        exec(code, names)
        printed = capsys.readouterr().out
        if expected:
            checker = doctest.OutputChecker()
            assert checker.check_output(expected, printed, doctest.ELLIPSIS), printed


def test_the_readme_names_no_target_that_make_lacks() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^    make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert named == ["demo", "test"]
    assert set(named) <= set(targets)
