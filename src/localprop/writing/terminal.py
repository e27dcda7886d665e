"""Text on a terminal."""

from __future__ import annotations

from typing import TextIO

from localprop.errors import escape


def print_text(text: str, file: TextIO | None = None) -> None:
    r"""Print a text at once, without what a terminal would obey: it may hold names of files.

    Args:
        text: one line or more.
        file: by default stdout.

    Example:
        >>> print_text("a\x1b[31m")
        a\x1b[31m
    """
    print(escape(text), file=file, flush=True)
