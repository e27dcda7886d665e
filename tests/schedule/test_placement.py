"""Placement of modules on the stages of a pipeline."""

from __future__ import annotations

import pytest

import localprop as lp
from localprop.schedule.placement import Placement
from tests.helpers.schedules import wire_mlp


@pytest.mark.parametrize("cuts", [(0,), (4,), (2, 2), (3, 1), (-1,)])
def test_stages_out_of_order(cuts: tuple[int, ...]) -> None:
    with pytest.raises(lp.BadInput, match=r"which must increase and lie in 1\.\.3"):
        Placement.at(wire_mlp(lp.LocalCredit()), cuts)


def test_stages_that_cannot_be_balanced() -> None:
    with pytest.raises(
        lp.BadInput, match=r"5 ranks, but 4 module\(s\).*Use modules=5 or more, or 4 ranks"
    ):
        Placement.balanced(wire_mlp(lp.LocalCredit()), 5, [1.0] * 4)
    with pytest.raises(lp.BadInput, match="3 costs for 4 modules"):
        Placement.balanced(wire_mlp(lp.LocalCredit()), 2, [1.0] * 3)


def test_stages_are_cut_where_modules_are() -> None:
    # Each module but the last has two segments.
    placement = Placement.at(wire_mlp(lp.BackwardLinks(1)), (1, 3))
    assert placement.stages == (range(2), range(2, 6), range(6, 7))
    assert [placement.stage_of(s) for s in range(7)] == [0, 0, 1, 1, 1, 1, 2]
