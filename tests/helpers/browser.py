"""Pages as a browser sees them: headless Chromium, with axe for what hinders readers."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as of Debian")

FRAME = """<!doctype html><iframe src="{name}" width="{width}" height="900"></iframe><script>
addEventListener("message", (event) => {{
  const text = document.createElement("pre");
  text.textContent = event.data;
  document.body.append(text);
}});</script>"""


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def find(self, *names: str) -> Iterator[dict[str, str | None]]:
        return (attributes for tag, attributes in self.tags if tag in names)


def look(page: Path, probe: str, profile: Path, width: int, *, dark: bool) -> dict[str, Any]:
    """Open a page in a frame of this width, and run a probe there.

    Args:
        page: the file. Two files stand beside it while it is open.
        probe: JavaScript that posts an object as JSON to its parent; it has axe.
        profile: a folder for the browser.
        width: of the frame, in pixels.
        dark: whether the reader prefers dark colours.

    Returns:
        The object.
    """
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text()
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())  # it would stop the probe
    probed, frame = page.with_name("probed.html"), page.with_name("frame.html")
    probed.write_text(
        text.replace("</body>", f"<script>{axe}</script><script>{probe}</script></body>")
    )
    frame.write_text(FRAME.format(name=probed.name, width=width))
    words = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    words += ["--virtual-time-budget=60000", "--window-size=1400,1000"]
    words += ["--blink-settings=preferredColorScheme=0"] if dark else []
    words += [f"--user-data-dir={profile}", f"file://{frame}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    probed.unlink()
    frame.unlink()
    found = re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result
