"""Colours, markers and line styles of a page. Each method has all three, so that one will do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MARKERS = "osD^vP*X<>hp"
LINES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
HATCHES = ("", "//", "||", "\\\\", "--")  # of lines alone, which take few bytes


@dataclass(frozen=True)
class Palette:
    """The colours of a chart.

    Attributes:
        ink: text, axes and the baseline.
        muted: what stands back.
        line: grids.
        ground: behind everything.
        accent: what is pointed at.
        series: of methods and kinds, one after the other.
    """

    ink: str
    muted: str
    line: str
    ground: str
    accent: str
    series: tuple[str, ...]

    def of_method(self, number: int) -> str:
        """The colour of a method; the baseline, number 0, has that of the text."""
        return self.ink if number == 0 else self.series[(number - 1) % len(self.series)]


# Each series has a contrast of 3 to 1 or more against its ground.
LIGHT = Palette(
    ink="#1b1f24",
    muted="#59636e",
    line="#d1d9e0",
    ground="#ffffff",
    accent="#0b62c4",
    series=("#0b62c4", "#b35900", "#1a7f37", "#8250df", "#cf222e", "#0e7490", "#7a6a00", "#bf3989"),
)
DARK = Palette(
    ink="#e6edf3",
    muted="#a0a9b3",
    line="#3d444d",
    ground="#0d1117",
    accent="#6cb6ff",
    series=("#6cb6ff", "#ffa657", "#3fb950", "#d2a8ff", "#ff7b72", "#39c5cf", "#d4b106", "#f778ba"),
)


def list_names() -> list[str]:
    """The names of all colours, as the style sheet calls them.

    Example:
        >>> list_names()[4:7]
        ['accent', 'series-0', 'series-1']
    """
    plain = ["ink", "muted", "line", "ground", "accent"]
    return plain + [f"series-{number}" for number in range(len(LIGHT.series))]


def name_colours(palette: Palette) -> dict[str, str]:
    """The colours of a palette by their names.

    Example:
        >>> name_colours(LIGHT)["ground"]
        '#ffffff'
    """
    colours = (palette.ink, palette.muted, palette.line, palette.ground, palette.accent)
    return dict(zip(list_names(), (*colours, *palette.series), strict=True))


# Colours that stand for names while a chart is drawn; `svg` puts the names in their places.
_STANDS_FOR = {name: f"#0a0b{number:02x}" for number, name in enumerate(list_names())}
_INK, _MUTED, _LINE, _GROUND, _ACCENT, *_SERIES = _STANDS_FOR.values()
NAMED = Palette(_INK, _MUTED, _LINE, _GROUND, _ACCENT, tuple(_SERIES))


def put_names(text: str) -> str:
    """Replace the colours of `NAMED` by variables of a style sheet.

    Example:
        >>> put_names(f"fill: {NAMED.accent}")
        'fill: var(--accent)'
    """
    for name, colour in _STANDS_FOR.items():
        text = text.replace(colour, f"var(--{name})")
    return text
