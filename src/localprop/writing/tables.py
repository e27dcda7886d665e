"""Tables of figures that read well in Markdown and in a terminal, and the same as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

MIB = 2**20  # bytes

Cells = Sequence[str]


def format_table(header: Cells, rows: Iterable[Cells]) -> str:
    """Format a padded Markdown table. The first column is left-aligned, the others right-aligned.

    Example:
        >>> print(format_table(["method", "MiB"], [["a", "1.0"], ["bb", "10.0"]]))
        | method |  MiB |
        |:-------|-----:|
        | a      |  1.0 |
        | bb     | 10.0 |
    """
    body = [list(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(header, *body, strict=True)]
    first, *others = widths
    alignments = [f":{'-' * (first + 1)}", *(f"{'-' * (width + 1)}:" for width in others)]
    lines = [_format_row(header, widths), f"|{'|'.join(alignments)}|"]
    lines += [_format_row(row, widths) for row in body]
    return "\n".join(lines)


def format_html_table(header: Cells, rows: Iterable[Cells]) -> str:
    """Format a table for a page.

    Example:
        >>> format_html_table(["method"], [["a < b"]])
        '<table><tr><th>method</th></tr><tr><td>a &lt; b</td></tr></table>'
    """
    cells = [_format_html_row("th", header), *(_format_html_row("td", row) for row in rows)]
    return f"<table>{''.join(cells)}</table>"


def _format_html_row(kind: str, cells: Cells) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"


def _format_row(cells: Cells, widths: Sequence[int]) -> str:
    padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    padded[0] = cells[0].ljust(widths[0])
    return f"| {' | '.join(padded)} |"
