"""The page as a whole: its files, what it asks for, and how it looks to a browser."""

from __future__ import annotations

import html
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from localprop.report.page.write import write_page
from tests.helpers.browser import Tags, look, needs_chromium
from tests.helpers.cli import names_in, read_json, run_command

pytestmark = pytest.mark.xdist_group("page")  # one process trains, and all tests read its runs


@pytest.fixture(scope="module")
def page(compared: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_page([compared, trained], folder / "page.html")
    return folder / "page.html"


def test_the_command_writes_the_page_and_its_tables(
    capsys: pytest.CaptureFixture[str], compared: Path, tmp_path: Path
) -> None:
    code, out, err = run_command(capsys, "report", str(compared), "--out", str(tmp_path / "a.html"))
    assert (code, err.splitlines()[-1]) == (0, "drawing")
    assert out.splitlines()[0] == f"Written: {tmp_path / 'a.html'}"
    names = ["a-memory.png", "a-time.png", "a.csv", "a.html", "a.md", "a.tex"]
    assert names_in(tmp_path) == names


def test_bad_input_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["report", str(tmp_path / "nowhere"), "--out", str(tmp_path / "page.txt")]
    code, _, err = run_command(capsys, *words)
    assert code == 2
    assert "nowhere is no directory" in err
    assert "must end in .html" in err
    assert names_in(tmp_path) == []


def test_a_missing_package_comes_with_its_line(
    capsys: pytest.CaptureFixture[str],
    compared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("jinja2", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = run_command(capsys, "report", str(compared), "--out", str(tmp_path / "a.html"))
    assert (code, err.count("pip install 'localprop[report]'")) == (2, 2)


def test_the_page_asks_nobody_for_anything(page: Path) -> None:
    text = page.read_text()
    tags = Tags(text)
    policy = next(each for each in tags.find("meta") if each.get("http-equiv"))
    assert (policy["content"] or "").startswith("default-src 'none'")
    assert not list(tags.find("link", "iframe", "object", "base", "form"))
    for attributes in tags.find("script", "img", "source", "a", "image", "use"):
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_names_headings_and_tables(page: Path) -> None:
    tags = Tags(page.read_text())
    names = [attributes["id"] for _, attributes in tags.tags if attributes.get("id")]
    assert len(names) == len({*names})
    levels = [int(tag[1]) for tag, _ in tags.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert {"header", "main", "footer", "nav"} <= {tag for tag, _ in tags.tags}
    assert next(tags.find("html"))["lang"] == "en"
    assert {attributes.get("scope") for attributes in tags.find("th")} == {"col", "row"}
    for attributes in tags.find("svg"):
        assert attributes.get("aria-hidden") == "true" or attributes["aria-labelledby"] in names


def test_every_figure_of_the_page_is_that_of_a_file(page: Path, compared: Path) -> None:
    text = html.unescape(page.read_text())
    for row in read_json(compared / "compare.json")["rows"]:
        assert f"{row['accuracy_mean']:.2f} ± {row['accuracy_std']:.2f}" in text
        assert f">{100 * row['peak_ratio']:.0f}<" in text
        assert f">{row['step_ratio']:.2f} (" in text


def test_what_users_write_is_no_markup(compared: Path, tmp_path: Path) -> None:
    values = read_json(compared / "compare.json")
    label = "<script>alert(1)</script>"
    values["rows"][1]["method"] = label
    values["notes"] = ["a < b & c"]
    (tmp_path / "compare.json").write_text(json.dumps(values))
    write_page([tmp_path], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert label not in text
    assert "a &lt; b &amp; c" in text


def test_a_network_that_is_elsewhere_costs_its_charts_alone(compared: Path, tmp_path: Path) -> None:
    values = read_json(compared / "compare.json")
    values["config"]["model"] = "my_code_elsewhere.py:make"
    (tmp_path / "compare.json").write_text(json.dumps(values))
    write_page([tmp_path], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "cannot be built here" in text
    assert "my_code_elsewhere.py" in text


# --- in Chromium ----------------------------------------------------------------------------------

PROBE = """
addEventListener("load", async () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
  const found = await axe.run(document, {resultTypes: ["violations"]});
  const table = document.querySelector("table");
  const column = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent.includes("MiB"));
  const value = (row) => Number(row.cells[column].dataset.value);
  const orders = [1, 2].map(() => {
    table.tHead.rows[0].cells[column].querySelector("button").click();
    return [...table.tBodies[0].rows].map(value);
  });
  const root = document.documentElement;
  parent.postMessage(JSON.stringify({
    violations: found.violations.map((v) => [v.id, v.impact, v.nodes[0].html]),
    requests: performance.getEntriesByType("resource").map((entry) => entry.name),
    orders, width: innerWidth, needs: root.scrollWidth,
    ground: getComputedStyle(root).backgroundColor,
  }), "*");
});
"""


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(360, False), (1280, True)])
def test_in_chromium(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    pytest.importorskip("axe_core_python", reason="needs axe: pip install '.[dev]'")
    seen = look(page, PROBE, tmp_path / "profile", width, dark=dark)
    assert seen["violations"] == []
    assert seen["requests"] == []
    assert seen["needs"] <= seen["width"] == width
    up, down = seen["orders"]
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert seen["ground"] == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
