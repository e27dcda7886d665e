"""LoPT on the text that ships with Python, far below the paper's size.

Source: Shi et al., LoPT, 2026, arXiv 2605.04913.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.cuts import find_cuts_of_sizes
from localprop.experiments.recipe import Recipe
from localprop.experiments.settings import TEXT_SETTING

BLOCKS = 8  # of the network in TEXT_SETTING
PAPER = "Shi et al., LoPT, 2026, arXiv 2605.04913"
NOTES = (
    "The paper continues the training of pretrained language models (2 modules cut in the middle, "
    "AdamW 2e-5, one epoch). Those models are not here. From scratch, the first module learns "
    "little more than to preserve its input."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    yield from (make_transformer(k) for k in (2, 4))


def make_transformer(k: int) -> Recipe:
    """The small transformer in k modules of equal numbers of blocks.

    The embedding goes with the first, as in the official code.
    """
    cuts = find_cuts_of_sizes((BLOCKS // k,) * k)
    config = replace(TEXT_SETTING, method="lopt()", cuts=cuts)
    return Recipe(f"transformer_text_lopt_k{k}", config, PAPER, notes=NOTES)
