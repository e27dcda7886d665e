"""The site of the documentation: it builds strictly, asks nobody for anything, and can be read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import localprop as lp
from tests.helpers.browser import Tags, look, needs_chromium

pytest.importorskip("zensical", reason="needs zensical: pip install '.[docs]'")
pytestmark = pytest.mark.xdist_group("site")  # one process builds, and all tests read its files

ROOT = Path(__file__).parent.parent
PROGRAM = Path(sys.executable).with_name("zensical")
# What a reader's browser loads by itself.
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
SHOWN = ("index.html", "methods/backlink.html", "reference/tasks.html")


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a folder with mkdocs.yml, docs and src."""
    words = [str(PROGRAM), "build", "--strict"]
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def copy_sources(folder: Path) -> None:
    shutil.copy(ROOT / "mkdocs.yml", folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "src").symlink_to(ROOT / "src")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    copy_sources(folder)
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Tags]:
    return {path: Tags(path.read_text()) for path in sorted(site.rglob("*.html"))}


def test_a_dead_link_fails(tmp_path: Path) -> None:
    """One to a page, and one to a heading."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text("site_name: a\nvalidation:\n  links:\n    anchors: warn\n")
    for link in ("nowhere.md", "index.md#nowhere"):
        (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n[a link]({link})\n")
        done = build(tmp_path)
        assert done.returncode == 1
        assert "does not exist" in done.stdout + done.stderr
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[a link](index.md#a-page)\n")
    assert build(tmp_path).returncode == 0


def test_pages_load_nothing_from_other_hosts(site: Path, pages: dict[Path, Tags]) -> None:
    assert len(pages) > 40
    for path, tags in pages.items():
        for tag, name in LOADED.items():
            for attributes in tags.find(tag):
                assert not re.match(r"(\w+:)?//", attributes.get(name) or ""), path
        # The theme's script would fetch Mermaid or a lightbox for these.
        assert not re.search(r'class="[^"]*(mermaid|glightbox|pyodide)', path.read_text()), path
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//[^)]*", style.read_text())


def test_every_link_inside_leads_somewhere(pages: dict[Path, Tags]) -> None:
    """Files, too, which the builder does not look at, and headings."""
    names = {path: {tag.get("id") for _, tag in tags.tags} for path, tags in pages.items()}
    for path, tags in pages.items():
        if path.name == "404.html":
            continue
        for attributes in (*tags.find("a", "link"), *tags.find("img", "script")):
            link = attributes.get("href") or attributes.get("src") or ""
            if not link or re.match(r"\w+:|//", link):
                continue
            file, heading = urldefrag(unquote(link))
            target = (path.parent / file).resolve() if file else path
            if target.is_dir():
                target /= "index.html"
            assert target.is_file(), f"{path.name}: {link}"
            if heading and not heading.startswith("__") and target in names:
                assert heading in names[target], f"{path.name}: {link}"


def test_the_reference_has_every_public_name(site: Path) -> None:
    text = "".join(path.read_text() for path in (site / "reference").glob("*.html"))
    found = {name.rpartition(".")[2] for name in re.findall(r'<h2 id="(localprop[\w.]+)"', text)}
    packages = {"analysis", "data", "loggers", "methods", "models"}
    names = {name for name in lp.__all__ if not name.startswith("__")} - packages
    for package in (lp.analysis, lp.data, lp.loggers, lp.models):
        names |= {*package.__all__}
    assert names <= found


PROBE = """
addEventListener("load", async () => {
  const found = await axe.run(document, {resultTypes: ["violations"]});
  const root = document.documentElement;
  parent.postMessage(JSON.stringify({
    violations: found.violations.map((v) => [v.id, v.impact, v.nodes.map((n) => n.html)[0]]),
    requests: performance.getEntriesByType("resource").map((entry) => entry.name),
    width: innerWidth, needs: root.scrollWidth,
    ground: getComputedStyle(document.body).backgroundColor,
  }), "*");
});
"""


@needs_chromium
@pytest.mark.parametrize("page", SHOWN)
@pytest.mark.parametrize(("width", "dark"), [(360, False), (1280, True)])
def test_in_chromium(site: Path, tmp_path: Path, page: str, width: int, dark: bool) -> None:
    pytest.importorskip("axe_core_python", reason="needs axe: pip install '.[dev]'")
    seen = look(site / page, PROBE, tmp_path / "profile", width, dark=dark)
    assert [each for each in seen["violations"] if each[1] in ("serious", "critical")] == []
    assert [name for name in seen["requests"] if not name.startswith("file:")] == []
    assert seen["needs"] <= seen["width"] == width
    light = seen["ground"] == "rgb(255, 255, 255)"
    assert light is not dark
