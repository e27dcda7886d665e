"""Placement of modules on the stages of a pipeline."""

from __future__ import annotations

import re

import pytest
import torch

import localprop as lp
from localprop.schedule.placement import Placement, find_placement_problems
from localprop.schedule.wiring import Wiring
from tests.helpers.networks_with_skips import MODELS
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


def wire_with_skips(name: str) -> Wiring:
    """Wire a network of `networks_with_skips` with a module for each layer."""
    sample = torch.zeros(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)
    layers = lp.layers_of(MODELS[name](), sample)
    partition = lp.Partition.uniform(layers, len(layers))
    return lp.wire(lp.greedy(), partition, task=lp.Segmentation())


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("pairs", [1, 2, 3]),  # blocks return two tensors
        ("branch", [1]),  # what block 0 returns goes around the next two
        ("halves", []),  # the first cut is no return of a module, and goes around all others
    ],
)
def test_stages_begin_where_nothing_goes_around(name: str, starts: list[int]) -> None:
    wiring = wire_with_skips(name)
    placements = {m: Placement.at(wiring, (m,)) for m in range(1, len(wiring.table.sizes))}
    problems = {m: [*find_placement_problems(wiring, at)] for m, at in placements.items()}
    assert [m for m, found in problems.items() if not found] == starts


def test_a_stage_where_something_goes_around_is_refused() -> None:
    wiring = wire_with_skips("U-Net")
    why = "nothing may go around it: a rank can begin only at module(s) 1"
    (problem,) = find_placement_problems(wiring, Placement.at(wiring, (2,)))
    assert problem.startswith("A rank begins after 'down.1', but")
    assert why in problem
    with pytest.raises(lp.BadInput, match=re.escape(f"{why}, so at most 2 rank(s) can share")):
        Placement.balanced(wiring, 3, [1.0] * 6)
