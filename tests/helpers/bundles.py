"""A small language model whose blocks hand on more than one tensor, in tuples and dicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.language_models import PaddingMask


class Mixer(nn.Module):
    """Mixes the positions that a mask lets be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear, self.dropout = nn.LayerNorm(4), nn.Linear(4, 4), nn.Dropout(0.2)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        mixed = (mask / mask.sum(-1, keepdim=True)) @ hidden
        output: Tensor = self.dropout(self.linear(self.norm(mixed)))
        return output


class PairBlock(nn.Module):
    """It returns a hidden state and the residual, as blocks of Mamba do."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = Mixer()

    def forward(
        self, hidden: Tensor, residual: Tensor | None, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        return self.mixer(residual, mask), residual * 1


class InPlacePair(PairBlock):
    """It writes into the residual that it gets."""

    def forward(
        self, hidden: Tensor, residual: Tensor | None, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert residual is not None
        return super().forward(hidden, residual.mul_(0.5), mask)


class DictBlock(nn.Module):
    """It returns its state in a dict: counter, mask and what was seen have no gradient, and the
    penalty is a scalar.

    Where no loss reaches the penalty, the price has no gradient, which is no gradient of zeros: an
    optimizer then keeps no momentum of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.price = Mixer(), nn.Parameter(torch.ones(()))

    def forward(self, state: dict[str, Any]) -> dict[str, Any]:
        hidden, mask, seen = state["hidden"], state["mask"], state["seen"]
        mixed = self.mixer(hidden + state["residual"] + seen, mask) * state["count"]
        return {
            "count": state["count"] + 1,
            "hidden": mixed,
            "mask": mask,
            "seen": mixed.detach() * 1,
            "penalty": state["penalty"] + self.price * mixed.square().mean(),
            "residual": state["residual"] + hidden.transpose(1, 2).tanh().transpose(1, 2),
        }


class BundledLanguageModel(nn.Module):
    """Three blocks of pairs and three of dicts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mask = nn.Embedding(11, 4), PaddingMask()
        self.pairs = nn.ModuleList([PairBlock(), PairBlock(), InPlacePair()])
        self.dicts = nn.ModuleList(DictBlock() for _ in range(3))
        self.head = nn.Linear(4, 11)

    def forward(self, ids: Tensor) -> Tensor:
        hidden, residual, mask = self.embed(ids), None, self.mask(ids)
        for pair in self.pairs:
            hidden, residual = pair(hidden, residual, mask)
        state = {
            "hidden": hidden,
            "residual": residual,
            "mask": mask,
            "seen": hidden.detach(),
            "count": torch.ones((), dtype=torch.int64),
            "penalty": hidden.new_zeros(()),
        }
        for block in self.dicts:
            state = block(state)
        last = functional.layer_norm(state["hidden"] + state["residual"], (4,))
        logits: Tensor = self.head(last) * (1 + state["penalty"])
        return logits
