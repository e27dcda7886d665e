"""Tables of figures that read well in Markdown and in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def _format_row(cells: Cells, widths: Sequence[int]) -> str:
    padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    padded[0] = cells[0].ljust(widths[0])
    return f"| {' | '.join(padded)} |"
