"""What analyses show on the page: means over seeds, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localprop.errors import BadInput
from localprop.report.page.learned import list_analysis_notes, list_learned
from localprop.report.page.results import Group, Method, Run, read_groups
from localprop.report.page.write import write_page
from localprop.report.run_analysis import read_analysis
from localprop.training.config import Config
from tests.helpers.cli import read_json

pytestmark = pytest.mark.xdist_group("page")  # one process trains, and all tests read its runs


def make_analysis(first: float, cosine: float | None, similarity: float | None) -> dict[str, Any]:
    return {
        "epochs": 2,
        "probe": {"scores": [first, 0.9], "measure": "accuracy"},
        "gradients": {"cosines": [cosine, 1.0]},
        "representations": {"values": [[similarity, 0.5], [0.25, 1.0]]},
        "notes": [],
    }


def make_group(*analyses: dict[str, Any] | None) -> Group:
    """A method with a run for each of these, of two epochs."""
    epochs = [{"epoch": 1}, {"epoch": 2}]
    runs = [Run(Path(f"run-{k}"), Config(), {}, epochs, None, a) for k, a in enumerate(analyses)]
    method = Method("mine", "A", Config(), tuple(runs), None, None, 0, None, None, None)
    return Group("runs", (method,), None, {}, {})


def test_means_over_the_seeds_that_know() -> None:
    group = make_group(make_analysis(0.5, None, 0.2), make_analysis(0.7, 0.3, None), None)
    probes, gradients, similarity = list_learned(group)
    assert probes.header == ("module", "mine")
    assert probes.rows == (("0", "60.00"), ("1", "90.00"))
    assert gradients.rows == (("0", "0.30"), ("1", "1.00"))
    assert similarity.rows == (("0", "0.20", "0.50"), ("1", "0.25", "1.00"))
    assert "module 0: 0.20, 0.50; module 1: 0.25, 1.00." in similarity.title
    texts = [each.get_text() for each in similarity.figure.axes[0].texts]
    assert texts == [".20", ".50", ".25", "1.00"]
    unknown = make_group(make_analysis(0.5, None, None))
    *_, gradients, similarity = list_learned(unknown)
    assert gradients.rows == (("1", "1.00"),)
    assert similarity.rows[0] == ("0", "–", "0.50")


def test_runs_that_nobody_has_analysed_show_nothing(trained: Path) -> None:
    assert list(list_learned(make_group(None, None))) == []
    (group,) = read_groups([trained])
    assert list(list_learned(group)) == []


def test_notes_and_an_analysis_that_is_older_than_its_run() -> None:
    group = make_group({**make_analysis(0.5, 1.0, 1.0), "epochs": 1, "notes": ["No gradients."]})
    said, old = list_analysis_notes(group)
    assert said == "mine: No gradients."
    assert "run-0 was analysed after 1 epochs, and has 2" in old
    assert list_analysis_notes(make_group(None)) == []


def test_figures_of_the_page_are_those_of_the_files(compared: Path, tmp_path: Path) -> None:
    write_page([compared], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    found = [read_json(compared / f"greedy/seed-{k}/analysis.json") for k in (0, 1)]
    for pair in zip(*(each["probe"]["scores"] for each in found), strict=True):
        assert f"<td>{50 * sum(pair):.2f}</td>" in text
    for pair in zip(*(each["gradients"]["cosines"] for each in found), strict=True):
        assert f"<td>{sum(pair) / 2:.2f}</td>" in text
    assert text.count("(CKA)</figcaption>") == 3
    assert "Learning rate, epoch by epoch" in text
    assert "Seconds of training, epoch by epoch" in text


def test_an_analysis_of_another_run_does_not_count(compared: Path) -> None:
    (group,) = read_groups([compared])
    run = group.methods[1].runs[0]
    assert run.analysis is not None
    other = replace(run.config, lr=0.5)
    assert read_analysis(run.path, run.config) == run.analysis
    assert read_analysis(run.path, other) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_analysis_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "analysis.json").write_text(text)
    with pytest.raises(BadInput, match=r"analysis.json cannot be read .* remove it"):
        read_analysis(tmp_path, Config())
