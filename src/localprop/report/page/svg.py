"""Charts as SVG inside a page: with the page's font and colours, and a description in words."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from localprop.report.page.palette import put_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _shorten(attribute: re.Match[str]) -> str:
    """Write the numbers of an attribute with two digits behind the point."""
    return re.sub(
        r"\d+\.\d+(e[+-]\d+)?",
        lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."),
        attribute[0],
    )


def to_svg(figure: Figure, name: str, title: str) -> Markup:
    """Turn a chart, drawn with the colours of `NAMED`, into SVG for a page.

    Args:
        figure: the chart.
        name: of letters, digits and dashes; unique on the page.
        title: what is seen, in words; empty for decoration beside a text.
    """
    from matplotlib import rc_context

    content = io.StringIO()
    # Text stays text, which is small, and can be searched and read aloud.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    # The names of several charts on one page must differ.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--font)", svg)
    svg = re.sub(r'\b(?:d|x|y|width|height|transform|points)="[^"]*"', _shorten, svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    svg = re.sub(r"\n([MLQCz])\b ?", r"\1", svg)
    opening, _, inside = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    label = 'aria-hidden="true"'
    if title:
        label = f'role="img" aria-labelledby="{name}-title"'
        inside = f'<title id="{name}-title">{escape(title)}</title>{inside}'
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return Markup(put_names(f"<svg {names} {box[0]} {label}>{inside}"))
