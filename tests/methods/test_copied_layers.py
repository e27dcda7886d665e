"""Copies of layers that get a mask from the network: they would see the future, so none is made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from tests.helpers.reference import sgd


class LanguageModel(nn.Module):
    """Transformer layers that get a causal mask, or none."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.embed = nn.Embedding(20, 16)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(4)
        )
        self.head = nn.Linear(16, 20)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1]) if self.masked else None
        hidden = self.embed(ids)
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=False)
        logits: Tensor = self.head(hidden)
        return logits


def make_learner(rule: lp.Rule, *, masked: bool) -> lp.Learner:
    ids = torch.zeros(4, 9, dtype=torch.long)
    return lp.Learner(LanguageModel(masked), rule, modules=4, optimizer=sgd, sample=(ids, ids))


@pytest.mark.parametrize("rule", [lp.auglocal(), lp.man(), lp.solo()])
def test_no_copy_is_made_of_layers_that_get_a_mask(rule: lp.Rule) -> None:
    with pytest.raises(lp.BadInput, match="gets src_mask from the network besides its features"):
        make_learner(rule, masked=True)


@pytest.mark.parametrize("rule", [lp.auglocal(), lp.man(), lp.solo()])
def test_arguments_that_have_their_defaults_are_no_obstacle(rule: lp.Rule) -> None:
    assert make_learner(rule, masked=False).heads


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("rule", [lp.auglocal(), lp.man(), lp.solo()])
def test_no_copy_is_made_of_layers_with_computed_weights(rule: lp.Rule) -> None:
    model = nn.Sequential(*[torch.nn.utils.weight_norm(nn.Linear(8, 8)) for _ in range(5)])
    model(torch.zeros(2, 8))
    sample = torch.zeros(4, 8), torch.arange(4)
    with pytest.raises(lp.BadInput, match="cannot be copied"):
        lp.Learner(model, rule, modules=4, optimizer=sgd, sample=sample)
