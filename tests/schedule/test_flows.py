"""Flows: which gradients travel together, and with which factors."""

from __future__ import annotations

import localprop as lp
from localprop.rule.table import T
from tests.helpers.schedules import wire_mlp


def test_a_weight_becomes_a_factor_on_the_edge_across_the_cut() -> None:
    """The linked gradient is scaled once, where it leaves module 1, and not once per layer."""
    flows = wire_mlp(lp.BackwardLinks(2, 0.5)).flows
    assert [(sorted(f.losses), f.train, f.onward, f.scale) for f in flows[2]] == [
        ([1], True, 1, 0.5)
    ]
    assert [(sorted(f.losses), f.train, f.onward, f.scale) for f in flows[1]] == [
        ([0], True, 0, 1.0),
        ([1], True, None, 1.0),
    ]


def test_gradients_with_equal_paths_travel_together() -> None:
    """Three losses on the way back through one module: one backward, not three."""
    rows = ((T, None, None), (T, T, None), (T, T, T))
    table = lp.CreditTable((1, 1, 1), rows)
    flows = wire_mlp(lambda partition: table, count=3, modules=3).flows
    losses = [[sorted(flow.losses) for flow in segment_flows] for segment_flows in flows]
    assert losses == [[[0, 1, 2]], [[1, 2]], [[2]]]
