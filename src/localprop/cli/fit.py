"""Make texts and tables fit the width of a terminal."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TextIO

# The least that is left for text beside a hanging indent, in columns.
_LEAST = 30


def fit(text: str, stream: TextIO) -> str:
    """Fit a text to the terminal that a stream writes to; files and pipes get whole lines.

    Example:
        >>> import io
        >>> fit("a " * 100, io.StringIO()) == "a " * 100
        True
    """
    return fit_width(text, shutil.get_terminal_size().columns) if stream.isatty() else text


def fit_width(text: str, width: int) -> str:
    """Wrap lines, and split Markdown tables into several that repeat the first column.

    A line of two columns, with two spaces or more between them, is wrapped below the second.

    Example:
        >>> print(fit_width("name  a text that is too long for this here terminal", 40))
        name  a text that is too long for this
              here terminal
        >>> print(fit_width("| a | b | c |\\n|:--|--:|--:|\\n| 1 | 2 | 3 |", 9))
        | a | b |
        |:--|--:|
        | 1 | 2 |
        <BLANKLINE>
        | a | c |
        |:--|--:|
        | 1 | 3 |
    """
    fitting: list[str] = []
    for is_table, group in groupby(text.split("\n"), lambda line: line.startswith("|")):
        lines = [*group]
        fitting += _split_table(lines, width) if is_table else _wrap_lines(lines, width)
    return "\n".join(fitting)


def _wrap_lines(lines: Iterable[str], width: int) -> Iterator[str]:
    for line in lines:
        columns = re.match(r"(\s*\S+\s{2,})\S", line)
        indent = len(columns[1]) if columns else len(line) - len(line.lstrip())
        yield (
            textwrap.fill(
                line,
                width,
                subsequent_indent=" " * (indent if indent + _LEAST <= width else 4),
                break_long_words=False,
                break_on_hyphens=False,
                replace_whitespace=False,
                drop_whitespace=True,
            )
            if len(line) > width
            else line
        )


def _split_table(lines: Sequence[str], width: int) -> Iterator[str]:
    if len(lines[0]) <= width:
        yield from lines
        return
    # Cells have no bars: tables of results are ours.
    rows = [line.strip("|").split("|") for line in lines]
    widths = [len(cell) + 1 for cell in rows[0]]
    first = widths[0] + 1
    parts: list[list[int]] = []
    used = width + 1
    for column in range(1, len(widths)):
        if used + widths[column] > width:
            parts.append([0])
            used = first
        parts[-1].append(column)
        used += widths[column]
    for number, columns in enumerate(parts):
        if number:
            yield ""
        for row in rows:
            yield f"|{'|'.join(row[column] for column in columns)}|"
