"""Charts as files: .png, .svg, or one self-contained page."""

from __future__ import annotations

import io
import os
from collections.abc import Collection
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from localprop.errors import BadInput, check, collect_problems
from localprop.writing.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".html", ".png", ".svg")
INSTALL = "pip install 'localprop[report]'"


def check_path(path: str | Path, formats: Collection[str] = FORMATS) -> Path:
    """The path of a file to write, checked before hours of work.

    Args:
        path: the file; ~ is the user's home.
        formats: how its name may end.

    Raises:
        BadInput: its name ends otherwise, there is no such folder, or matplotlib is not installed
            and a chart is wanted.

    Example:
        >>> check_path("chart.svg").suffix
        '.svg'
    """
    found = Path(os.path.expanduser(path))
    problems = []
    if found.suffix not in formats:
        problems.append(
            f"out={str(path)!r} cannot be written: its name must end in {', '.join(formats)}."
        )
    if not os.path.isdir(found.parent):
        problems.append(f"out={str(path)!r}: there is no folder {found.parent}; create it first.")
    elif os.path.isdir(found):
        problems.append(f"out={str(path)!r} is a folder: name a file.")
    if found.suffix in FORMATS:
        with collect_problems(problems):
            require_matplotlib()
    check(problems)
    return found


def require_matplotlib() -> None:
    """Check that charts can be drawn.

    Raises:
        BadInput: if matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BadInput(f"Charts need matplotlib ({error}): {INSTALL}.") from error


def write_chart(figure: Figure, path: Path, *, title: str, text: str = "", below: str = "") -> None:
    """Write a figure whole, or leave the old file as it was.

    Args:
        figure: the chart.
        path: ends in one of `FORMATS`.
        title: of a page.
        text: on a page, above the chart.
        below: on a page, below the chart, as HTML.

    Raises:
        RunFailed: the file cannot be written.
    """
    content = io.BytesIO()
    if path.suffix == ".png":
        figure.savefig(content, format="png", dpi=120)
    else:
        figure.savefig(content, format="svg")
    if path.suffix == ".html":
        page = _format_page(content.getvalue().decode(), title, text, below)
        content = io.BytesIO(page.encode())
    write_bytes(path, content.getvalue())


def _format_page(svg: str, title: str, text: str, below: str) -> str:
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            "<style>body { font-family: sans-serif; margin: 1em }",
            "svg { max-width: 100%; height: auto } td, th { padding: 0 0.6em; text-align: right }",
            "td:first-child, th:first-child { text-align: left }</style></head>",
            f"<body><h1>{escape(title)}</h1><p>{escape(text)}</p>",
            svg[svg.index("<svg") :],  # without the XML declaration
            below,
            "</body></html>",
        ]
    )
