"""Credit tables: what they know, and what they refuse."""

from __future__ import annotations

import pytest

import localprop as lp
from localprop.rule.table import PASS, Entry, T
from tests.helpers.schedules import mlp_layers


def test_what_a_table_knows() -> None:
    table = lp.InterlockingCredit(2)(lp.Partition.uniform(mlp_layers(12), 4))
    assert table.losses == (1, 2, 3)
    assert [table.reach(k) for k in range(4)] == [0, 6, 6, 6]
    assert table.column(4) == (None, PASS, T, None)


def test_all_problems_of_a_table_at_once() -> None:
    negative = Entry(True, -1.0)
    rows = (
        (T, T, None, None, None, None),  # loss 0 is at layer 1: fine
        (T, None, T, T, None, None),  # skips layer 1
        # Trains nothing before the layer that it passes, and has a weight below zero.
        (None, None, None, None, PASS, negative),
    )
    with pytest.raises(lp.BadInput) as caught:
        lp.CreditTable((2, 2, 2), rows)
    *problems, drawn = caught.value.problems
    assert problems == [
        "The gradient of loss 1 skips a layer: its entries must be consecutive.",
        "The gradient of loss 2 passes through layer 4 but trains nothing before it: begin its "
        "entries with a T.",
        "Loss 2 trains layer 5 with weight -1.0: a weight must be positive and finite.",
        "No loss trains layer 4: give it a T in one row.",
    ]
    assert drawn.startswith(
        "The credit table reads:\nloss0 TT|..|..\nloss1 T.|TT|..\nloss2 ..|..|p"
    )


@pytest.mark.parametrize(
    ("sizes", "rows", "message"),
    [
        ((1, 1), ((T, None),), "1 rows for 2 modules"),
        ((1, 1), ((T,), (None, T)), "Row 0 has 1 entries for 2 layers"),
        ((1, 1), ((T, T), (None, T)), "Loss 0 is at layer 0, but its gradient starts at layer 1"),
        ((2,), ((T, None),), "Loss 0 is at layer 1, but its gradient starts at layer 0"),
        ((1, 1), ((None, None), (None, T)), "No loss trains layer 0"),
        ((1,), ((Entry(True, 0.0),),), "with weight 0.0"),
        ((1,), ((Entry(True, float("nan")),),), "with weight nan"),
    ],
)
def test_bad_tables(
    sizes: tuple[int, ...], rows: tuple[tuple[Entry | None, ...], ...], message: str
) -> None:
    with pytest.raises(lp.BadInput, match=message):
        lp.CreditTable(sizes, rows)
