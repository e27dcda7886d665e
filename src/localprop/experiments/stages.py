"""A language model in stages, each with private decoder layers and an output head of its own.

Each stage predicts the next token behind a few blocks that belong to its loss alone, and is trained
by that loss. A page at frasgreen.com describes it, with figures of one run that its author reports.
It is AugLocal's table with copies of blocks as heads. End-to-end training beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.recipe import Recipe
from localprop.training.config import Config

PAPER = "block-wise local training of language models, frasgreen.com (a page, one run)"
READINGS = (
    "The network, its size, the text, the setting, the number of private blocks and the initial "
    "weights of the heads, which are no copies of the output head's, are our reading."
)
SETTING = Config(
    model="transformer:width=128,blocks=8",
    data="text",
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.1,
    epochs=10,
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    yield Recipe(
        "transformer_text_stages_e2e",
        replace(SETTING, method="end_to_end()", modules=1),
        PAPER,
        readings=READINGS,
    )
    yield from (make_transformer(k) for k in (2, 4))


def make_transformer(k: int) -> Recipe:
    """A decoder of eight blocks in k stages, each with two private blocks."""
    method = "auglocal(depth=2, joined=False)"
    config = replace(SETTING, method=method, modules=k)
    return Recipe(f"transformer_text_stages_k{k}", config, PAPER, readings=READINGS)
