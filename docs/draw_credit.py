"""Draw the credit table of a method, with its content in words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from html import escape
from itertools import accumulate
from typing import Any, NamedTuple

import torch

import localprop as lp
from localprop.methods.parse import parse_rule
from localprop.report.page.anatomy import list_credit_cells
from localprop.report.page.palette import LIGHT
from localprop.report.page.sentences import describe_credit

CELL, LEFT, TOP = 18, 60, 22
STYLE = f"""
text {{ font: 12px sans-serif; fill: {LIGHT.ink}; }}
.ground {{ fill: {LIGHT.ground}; }}
.line {{ stroke: {LIGHT.line}; }}
.cut {{ stroke: {LIGHT.muted}; }}
.trains {{ fill: {LIGHT.accent}; stroke: {LIGHT.accent}; }}
.passes {{ fill: none; stroke: {LIGHT.accent}; stroke-width: 1.5; }}
"""


class Drawing(NamedTuple):
    """A drawing as SVG, and what it shows in words."""

    svg: str
    words: str


def draw_credit(name: str, make: Callable[..., lp.Rule]) -> Drawing:
    """Draw the table of a method for four modules of three layers.

    The arguments are those that the method's docstring draws its own table with.
    """
    model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(12)])
    partition = lp.Partition.uniform(lp.layers_of(model, torch.zeros(2, 2)), 4)
    rule = parse_rule(f"{name}({find_arguments(make)})")
    table = rule.credit(partition)
    words = describe_credit(list(list_credit_cells(table)))
    return Drawing(to_svg(table, words), words)


def find_arguments(make: Callable[..., Any]) -> str:
    """The arguments that a docstring names above its drawing, such as "layers=1"."""
    doc = inspect.getdoc(make) or ""
    above = re.search(r"^Credit([^:]*)", doc, re.MULTILINE)
    return ", ".join(re.findall(r"\w+=[\w.]+", above[1])) if above else ""


def to_svg(table: lp.CreditTable, words: str) -> str:
    width, height = LEFT + CELL * sum(table.sizes) + 4, TOP + CELL * len(table.rows) + 4
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(words)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{width}" height="{height}"/>',
        *draw_rows(table),
        *draw_cells(table),
        *draw_modules(table),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def draw_rows(table: lp.CreditTable) -> Iterator[str]:
    for loss in range(len(table.rows)):
        y = TOP + CELL * loss
        yield f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">loss {loss}</text>'
        yield f'<path class="line" d="M{LEFT} {y + CELL / 2}h{CELL * sum(table.sizes)}"/>'


def draw_cells(table: lp.CreditTable) -> Iterator[str]:
    for loss, layer, kind in list_credit_cells(table):
        x, y, side = LEFT + CELL * layer + 2, TOP + CELL * loss + 2, CELL - 4
        yield f'<rect class="{kind}" x="{x}" y="{y}" width="{side}" height="{side}" rx="2"/>'


def draw_modules(table: lp.CreditTable) -> Iterator[str]:
    """The name of each module, and a line at each cut."""
    ends = list(accumulate(table.sizes))
    for module, (size, end) in enumerate(zip(table.sizes, ends, strict=True)):
        middle = LEFT + CELL * (end - size / 2)
        name = f"module {module}" if size > 2 else str(module)
        yield f'<text x="{middle}" y="14" text-anchor="middle">{name}</text>'
        if end != ends[-1]:
            bottom = CELL * len(table.rows)
            yield f'<path class="cut" d="M{LEFT + CELL * end} {TOP}v{bottom}"/>'
