"""BackLink and interlocking: the credit tables of all readings of their papers."""

from __future__ import annotations

import torch
from torch import nn

import localprop as lp


def test_links_reach_the_other_readings_of_their_papers() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)])
    partition = lp.Partition.uniform(lp.layers_of(model, torch.zeros(2, 2)), 4)

    def draw(rule: lp.Rule) -> str:
        return str(rule.credit(partition))

    assert draw(lp.backlink(layers=99)) == draw(lp.interlocking(wise=2, combine="sum"))
    assert draw(lp.backlink(layers=99, combine="only")) == draw(lp.interlocking(wise=2))
    across = draw(lp.backlink(layers=4, cross_modules=True)).splitlines()
    assert across[2] == "loss2 ..T|TTT|TTT|..."
    assert draw(lp.backlink(layers=2, unit="convs")) == draw(lp.backlink(layers=2))
    assert draw(lp.backlink(layers=2, combine="only")).splitlines()[1] == "loss1 .TT|Tpp|...|..."
    assert draw(lp.backlink(combine="mean")).splitlines()[1] == "loss1 ..a|TTa|...|..."
    assert draw(lp.interlocking(combine="mean")).splitlines()[1] == "loss1 aaa|aaa|...|..."
