"""A small language model in float64, and batches for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

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


class Rotary(nn.Module):
    """Tables of rotary positions: no weights, and off the gradient's path."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.arange(hidden.shape[1], dtype=hidden.dtype)[:, None] / torch.tensor([1, 10])
        angles = torch.cat([angles, angles], 1)
        return angles.cos(), angles.sin()


class PaddingMask(nn.Module):
    """A causal mask that leaves out padding, the word 0."""

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        return seen & ((ids != 0)[:, None] | torch.eye(length, dtype=torch.bool, device=ids.device))


class RotaryBlock(nn.Module):
    """Attention with rotary positions, a mask and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.2)

    def forward(self, hidden: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(hidden)).chunk(3, -1)
        query, key = (rotate(each, *tables) for each in (query, key))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output: Tensor = hidden + self.dropout(self.out(mixed))
        return output


def rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = vectors.chunk(2, -1)
    return vectors * cos + torch.cat([-two, one], -1) * sin


class RotaryLanguageModel(nn.Module):
    """Modules beside the blocks make tables and a mask, which every block gets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 4)
        self.rotary, self.mask = Rotary(), PaddingMask()
        self.blocks = nn.ModuleList(RotaryBlock() for _ in range(5))
        self.head = nn.Linear(4, 11)

    def forward(self, ids: Tensor) -> Tensor:
        hidden, mask = self.embed(ids), self.mask(ids)
        tables = self.rotary(hidden)
        for block in self.blocks:
            hidden = block(hidden, tables, mask)
        logits: Tensor = self.head(hidden)
        return logits


def make_padded_batches() -> list[tuple[Tensor, Tensor]]:
    """Batches of words, padded to another length each; padding is no target."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for length in (9, 7, 9):
        ids = torch.randint(1, 11, (6, length), generator=generator)
        ids[1, -3:] = 0
        batches.append((ids, ids.roll(-1, 1).masked_fill(ids == 0, -100)))
    return batches
