"""SOLO on the text that ships with Python, far below the paper's size.

Source: Yin et al., SOLO, 2026, arXiv 2609.35440.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.recipe import Recipe
from localprop.experiments.settings import TEXT_SETTING

PAPER = "Yin et al., SOLO, 2026, arXiv 2609.35440"
NOTES = (
    "The network (6.5 million parameters), its setting and the text, which it reads as bytes, are "
    "ours. The paper trains 24 blocks of width 1024 (340 million parameters) and more on 15 "
    "billion tokens of SlimPajama with context 2048. Those data are not here. For a network of the "
    "paper's size add --model transformer:width=1024,heads=16,blocks=24 --context 2048 --data "
    "FILE.txt."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family: end-to-end and greedy training for comparison, and SOLO."""
    yield make_transformer("e2e", "end_to_end()", 1)
    yield make_transformer("greedy_k4", "greedy()", 4)
    yield from (make_transformer(f"solo_k{k}", "solo()", k) for k in (2, 4))


def make_transformer(row: str, method: str, k: int) -> Recipe:
    """The small transformer in k modules of equal numbers of layers."""
    config = replace(TEXT_SETTING, method=method, modules=k)
    return Recipe(f"transformer_text_{row}", config, PAPER, notes=NOTES)
