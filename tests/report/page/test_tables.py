"""The tables beside the page."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from localprop.report.page.results import read_groups
from localprop.report.page.tables import format_csv, format_latex, format_markdown, make_table
from tests.helpers.cli import read_json

pytestmark = pytest.mark.xdist_group("page")  # one process trains, and all tests read its runs


def test_csv_has_a_line_for_each_run(compared: Path, trained: Path) -> None:
    groups = read_groups([compared, trained])
    lines = list(csv.DictReader(format_csv(groups).splitlines()))
    assert len(lines) == 3 * 2 + 1
    values = read_json(compared / "compare.json")
    for line, (row, seed) in zip(
        lines, [(row, seed) for row in values["rows"] for seed in (0, 1)], strict=False
    ):
        assert (line["method"], int(line["seed"])) == (row["method"], seed)
        assert float(line["test_accuracy"]) == row["accuracies"][seed] / 100
        assert float(line["test_loss"]) == row["losses"][seed]
        assert int(line["peak_bytes"]) == row["peak_bytes"]
    summary = read_json(trained / "summary.json")
    assert float(lines[-1]["test_accuracy"]) == summary["test_accuracy"]
    assert lines[-1]["step_ratio"] == ""


def test_markdown_and_latex_have_all_rows(compared: Path) -> None:
    groups = read_groups([compared])
    markdown, latex = format_markdown(groups), format_latex(groups)
    assert markdown.startswith("## mlp:8 on digits, 2 epochs (compared)\n")
    for label in ("end_to_end()", "greedy()", "mine"):
        assert f"| {label} " in markdown
    assert r"end\_to\_end() & " in latex
    assert r"$\pm$" in latex
    assert latex.count(r"\\") == 4
    assert not {"±", "−", "–"} & {*latex}
    widths = {line.count("&") for line in latex.splitlines() if "&" in line}
    assert widths == {len(make_table(groups[0]).header) - 1}
