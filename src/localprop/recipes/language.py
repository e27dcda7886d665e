"""Language models: SOLO and LoPT on the text that ships with Python, far below the papers' sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.recipes.recipe import Recipe
from localprop.training.config import Config

SOLO = "Yin et al., SOLO, 2026, arXiv 2609.35440"
LOPT = "Shi et al., LoPT, 2026, arXiv 2605.04913"
# 8 blocks of width 256, 6.5 million parameters: what trains on one small machine.
SETTING = Config(
    model="transformer:width=256,heads=8,blocks=8",
    data="text",
    context=256,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.1,
    batch_size=32,
    epochs=20,
)
SMALL = (
    "Ours are the network (6.5 million parameters), the bytes it reads, and its setting: the paper trains {theirs}, which is "
    "not here. Its size is reached by --model transformer:{size} --context {context} --data FILE.txt."
)
SOLO_NOTES = SMALL.format(
    theirs="24 blocks of width 1024 (340 million parameters) and more on 15 billion tokens of SlimPajama, context 2048",
    size="width=1024,heads=16,blocks=24",
    context=2048,
)
LOPT_NOTES = (
    "The paper goes on with language models that are trained already (2 modules cut in the middle, AdamW 2e-5, one epoch), which "
    "is not here: from scratch the first module learns no more than to keep its input."
)


def recipes() -> Iterator[Recipe]:
    """All of the family."""
    yield text("e2e", "end_to_end()", 1, SOLO, SOLO_NOTES)
    yield text("greedy_k4", "greedy()", 4, SOLO, SOLO_NOTES)
    yield from (text(f"solo_k{k}", "solo()", k, SOLO, SOLO_NOTES) for k in (2, 4))
    yield from (text(f"lopt_k{k}", "lopt()", k, LOPT, LOPT_NOTES) for k in (2, 4))


def text(row: str, method: str, k: int, paper: str, notes: str) -> Recipe:
    """The small transformer in k modules of equal numbers of layers."""
    return Recipe(f"transformer_text_{row}", replace(SETTING, method=method, modules=k), paper, notes=notes)
