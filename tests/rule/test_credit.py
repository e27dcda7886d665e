"""Credits: the tables that they make, as text, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import localprop as lp
from localprop.rule.credit import Credit
from tests.helpers.schedules import mlp_layers

# Four modules of three layers.
TABLES: dict[Credit, str] = {
    lp.LocalCredit(): """
loss0 TTT|...|...|...
loss1 ...|TTT|...|...
loss2 ...|...|TTT|...
loss3 ...|...|...|TTT""",
    lp.BackwardLinks(layers=1): """
loss0 TTT|...|...|...
loss1 ..T|TTT|...|...
loss2 ...|..T|TTT|...
loss3 ...|...|..T|TTT""",
    lp.InterlockingCredit(wise=2): """
loss0 ...|...|...|...
loss1 TTT|ppp|...|...
loss2 ...|TTT|ppp|...
loss3 ...|...|TTT|TTT""",
    lp.EndToEndCredit(): """
loss0 ...|...|...|...
loss1 ...|...|...|...
loss2 ...|...|...|...
loss3 TTT|TTT|TTT|TTT""",
    lp.InterlockingCredit(wise=3): """
loss0 ...|...|...|...
loss1 ...|...|...|...
loss2 TTT|ppp|ppp|...
loss3 ...|TTT|TTT|TTT""",
    lp.LocalCredit(joined=1): """
loss0 TTT|...|...|...
loss1 ...|TTT|...|...
loss2 ...|...|...|...
loss3 ...|...|TTT|TTT""",
    lp.BackwardLinks(layers=2, weight=0.5): """
loss0 TTT|...|...|...
loss1 .aa|TTT|...|...
loss2 ...|.aa|TTT|...
loss3 ...|...|.aa|TTT
where a = T(0.5)""",
    lp.BackwardLinks(layers=0): """
loss0 TTT|...|...|...
loss1 ...|TTT|...|...
loss2 ...|...|TTT|...
loss3 ...|...|...|TTT""",
}


@pytest.mark.parametrize("credit", TABLES, ids=str)
def test_tables_as_text(credit: Credit) -> None:
    table = credit(lp.Partition.uniform(mlp_layers(12), 4))
    assert str(table) == TABLES[credit].strip()
    assert table.sizes == (3, 3, 3, 3)
    assert table.ends == (2, 5, 8, 11)


# Three modules of three layers, one row per word.
ROWS: dict[Credit, str] = {
    lp.BackwardLinks(): "TTT|...|... ..T|TTT|... ...|..T|TTT",
    lp.BackwardLinks(layers=4, cross_modules=True): "TTT|...|... TTT|TTT|... ..T|TTT|TTT",
    lp.BackwardLinks(combine="only"): "TTp|...|... ..T|TTp|... ...|..T|TTT",
    lp.BackwardLinks(combine="mean"): "TTa|...|... ..a|TTa|... ...|..a|TTT",
    lp.InterlockingCredit(2): "...|...|... TTT|ppp|... ...|TTT|TTT",
    lp.InterlockingCredit(2, combine="sum"): "TTT|...|... TTT|TTT|... ...|TTT|TTT",
    lp.InterlockingCredit(2, combine="mean"): "aaa|...|... aaa|aaa|... ...|aaa|TTT",
    lp.WindowCredit(2): "...|...|... TTT|TTT|... ...|TTT|TTT",
    lp.WindowCredit(2, stride=2): "...|...|... TTT|TTT|... ...|...|TTT",
    lp.LocalAndWindowCredit(): "...|TTT|... TTT|TTT|... ...|TTT|TTT",
    lp.LocalAndWindowCredit(weight=0.5): "...|TTT|... TTT|TTT|... ...|aaa|TTT",
}


@pytest.mark.parametrize(("credit", "rows"), ROWS.items(), ids=map(repr, ROWS))
def test_tables_of_three_modules_of_three_layers(credit: Credit, rows: str) -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)])
    partition = lp.Partition.uniform(lp.layers_of(model, torch.zeros(2, 2)), 3)
    lines = str(credit(partition)).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("loss")] == rows.split()


def test_the_length_of_a_link_in_convolutions() -> None:
    """A block of ResNet-14 has two convolutions on its longest path, and shortcuts are shorter.

    A link of three convolutions needs two blocks.
    """
    layers = lp.layers_of(lp.models.resnet14(), torch.zeros(2, 3, 8, 8))
    assert layers.depths == (1, 2, 2, 2, 2, 2, 3)  # the last layer includes the classifier
    table = lp.BackwardLinks(layers=3, unit="convs")(lp.Partition.at(layers, last=[2, 5]))
    assert str(table).splitlines()[1] == "loss1 .TT|TTT|."


@pytest.mark.parametrize(
    "build",
    [lambda: lp.LocalCredit(-1), lambda: lp.BackwardLinks(-1), lambda: lp.InterlockingCredit(0)],
)
def test_bad_counts_of_a_credit(build: Callable[[], Credit]) -> None:
    with pytest.raises(lp.BadInput, match="must be"):
        build()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_weights_of_a_link(weight: float) -> None:
    with pytest.raises(lp.BadInput, match="positive and finite"):
        lp.BackwardLinks(1, weight)


def test_more_joined_modules_than_there_are() -> None:
    with pytest.raises(
        lp.BadInput, match="joined=4 modules before the last one, but there are only 3"
    ):
        lp.LocalCredit(joined=4)(lp.Partition.uniform(mlp_layers(12), 4))
