"""Recompute, on networks whose layers are not written out as modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from tests.helpers.reference import sgd

GENERATOR = torch.Generator().manual_seed(0)
BATCH = (torch.randn(8, 3, 8, 8, generator=GENERATOR), torch.arange(8) % 10)


class HandWritten(nn.Module):
    """Convolutions with plain functions between them, a shared norm, and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(5)]
        )
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.fc = nn.Linear(8, 10)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for conv in self.convs:
            x = functional.relu(self.norm(conv(x)), inplace=True)
            x = functional.dropout(x, 0.2, self.training)
        return self.classify(x)

    def classify(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc(x.mean((2, 3)))
        return output


class InPlace(HandWritten):
    """Writes into the outputs of its convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x)
            x += 1
            x = functional.relu(x, inplace=True)
        return self.classify(x)


@pytest.mark.parametrize("build", [HandWritten, InPlace])
@pytest.mark.parametrize(
    "rule", [lp.end_to_end(), lp.backlink(), lp.contsup()], ids=lambda rule: rule.reference
)
def test_recompute_runs_what_cannot_be_skipped(build: type[HandWritten], rule: lp.Rule) -> None:
    """Code between the skipped layers ran for real, on the constants that stood for their outputs.

    It updated statistics, drew the segment's random numbers, and could not write into a constant
    that has no memory.
    """
    torch.manual_seed(0)
    model = build()
    states = []
    for recompute in (False, True):
        trained = copy.deepcopy(model)
        learner = lp.Learner(
            trained, rule, modules=5, optimizer=sgd, sample=BATCH, recompute=recompute
        )
        for _ in range(3):
            learner.step(BATCH)
        states.append(trained.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


class Rotary(nn.Module):
    """A table of positions: no weights, and off the gradient's path."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.arange(hidden.shape[1], dtype=hidden.dtype).cos()[:, None]


class Masked(nn.Module):
    """Modules beside the blocks make a mask and a table, which every block reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.rotary = Rotary()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 9)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        table, mask = self.rotary(hidden), (ids != 0).unsqueeze(-1)
        for block in self.blocks:
            hidden = block(hidden * table * mask)
        logits: Tensor = self.head(hidden)
        return logits


@pytest.mark.parametrize("rule", [lp.greedy(), lp.end_to_end()])
def test_tables_and_masks_beside_the_blocks_are_no_obstacle(rule: lp.Rule) -> None:
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
    states = []
    for recompute in (False, True):
        torch.manual_seed(0)
        learner = lp.Learner(
            Masked(), rule, modules=4, optimizer=sgd, sample=(ids, ids), recompute=recompute
        )
        for _ in range(3):
            learner.step((ids, ids))
        states.append(learner.model.state_dict())
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert one.equal(other)
