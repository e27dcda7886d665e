"""A small language model in float64, and batches for it."""

from __future__ import annotations

import torch
from torch import nn

import localprop as lp
from localprop.models.transformer import TransformerLM
from tests.helpers.reference import Batches

WORDS, CONTEXT, WIDTH = 11, 6, 8


def language_model(blocks: int = 4, *, tied: bool = False) -> tuple[TransformerLM, Batches]:
    """A model and four batches of random words."""
    torch.manual_seed(0)
    model = lp.models.transformer_lm(
        WORDS, CONTEXT, width=WIDTH, heads=2, blocks=blocks, tied=tied
    ).double()
    assert isinstance(model, TransformerLM)
    with torch.no_grad():
        # The model's initial weights are so small that heads would see almost nothing.
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    shape = (5, CONTEXT)
    batches = [(torch.randint(WORDS, shape), torch.randint(WORDS, shape)) for _ in range(4)]
    return model, batches


def layers_of_language_model(model: nn.Module) -> list[nn.Module]:
    assert isinstance(model, TransformerLM)
    *blocks, last = model.blocks
    return [model.embed, *blocks, nn.Sequential(last, model.norm, model.unembed)]
