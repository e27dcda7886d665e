"""Charts inside a page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from localprop.report.page.palette import DARK, LIGHT, NAMED, Palette
from localprop.report.page.svg import to_svg


def draw(palette: Palette) -> Figure:
    figure = Figure(figsize=(2, 2))
    axes = figure.subplots()
    axes.plot([0, 1], [0.125, 1e-7], color=palette.accent, marker="o")
    axes.set_title("0.125 of <all>", color=palette.ink)
    return figure


def test_colours_are_variables_and_text_is_text() -> None:
    svg = to_svg(draw(NAMED), "one", "A line & a dot")
    root = ElementTree.fromstring(svg)
    assert root.find("{*}title").text == "A line & a dot"  # type: ignore[union-attr]
    assert {"role": "img", "aria-labelledby": "one-title"}.items() <= root.attrib.items()
    assert "0.125 of <all>" in [element.text for element in root.iter()]  # no digit is lost
    assert "stroke: var(--accent)" in svg
    assert "#0a0b" not in svg
    assert "DejaVu" not in svg
    assert "width=" not in svg.partition(">")[0]


def test_two_charts_share_no_name() -> None:
    one, other = (to_svg(draw(NAMED), name, "x") for name in ("one", "other"))
    names = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (one, other)]
    assert names[0]
    assert not names[0] & names[1]
    for svg, own in zip((one, other), names, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg)) <= own


def test_numbers_are_short() -> None:
    assert not re.search(r' d="[^"]*\.\d{3}', to_svg(draw(NAMED), "one", "x"))


def test_decoration_is_hidden_from_screen_readers() -> None:
    assert 'aria-hidden="true"' in to_svg(draw(NAMED), "one", "")


def luminance(colour: str) -> float:
    """Of WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrasts() -> None:
    """WCAG 2 wants 4.5 for text and 3 for graphics."""
    for palette in (LIGHT, DARK):
        for colour in (palette.ink, palette.muted, palette.accent):
            assert contrast(colour, palette.ground) >= 4.5
        assert all(contrast(colour, palette.ground) >= 3 for colour in palette.series)
        assert contrast(palette.ink, palette.line) >= 4.5  # what is written on waits
