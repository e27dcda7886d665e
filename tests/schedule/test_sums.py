"""Where the weights' gradients of several flows are made once, and what these actions read."""

from __future__ import annotations

import pytest

import localprop as lp
from localprop.schedule.flows import Flow
from localprop.schedule.sums import find_weights_once
from localprop.schedule.wiring import Skips
from tests.helpers.operands import print_liveness, print_ranks, select, split_lines, wire_rule

ENDS = Flow(frozenset({2}), train=True, onward=None, scale=1.0)
GOES_ON = Flow(frozenset({1}), train=True, onward=0, scale=1.0)
PASSES = Flow(frozenset({1}), train=False, onward=0, scale=1.0)


@pytest.mark.parametrize(
    ("flows", "is_once"),
    [
        ((ENDS,), False),
        ((PASSES, ENDS), False),
        ((GOES_ON, ENDS), True),
        ((GOES_ON, PASSES, ENDS), True),
        ((GOES_ON, GOES_ON), False),  # two passes of inputs and one of weights, instead of two
        ((GOES_ON, GOES_ON, GOES_ON), True),
    ],
)
def test_weights_are_made_once_where_that_saves_work(
    flows: tuple[Flow, ...], is_once: bool
) -> None:
    assert find_weights_once([flows], [Skips()]) == ({0} if is_once else set())
    assert find_weights_once([flows], [Skips(kept=(0,))]) == set()


# Two modules of two layers; the second layer, segment 1, learns from both losses. Flow 0 goes on to
# segment 0 and keeps what it began with, for W.
BACKLINK_ONCE = """
    0F    x                     -> h0 graph0
    1F    h0†                   -> h1 f1 graph1 leaf1
    1L    f1† x y               -> loss0 H0 g1.0<1L
    1H    H0                    ->
    1B.0  graph1 g1.0<1L† leaf1† -> gw1.0 g0<1B.0
    0B    graph0† g0<1B.0†      -> G0
    0S    G0                    ->
    2F    h1†                   -> f2 graph2 leaf2
    2L    f2† x y               -> loss1 g2<2L
    2B    graph2† g2<2L† leaf2† -> G2 g1.1<2B
    2S    G2                    ->
    1W    graph1† gw1.0† g1.1<2B† -> G1
    1S    G1                    ->
"""


def test_weights_once() -> None:
    lines = print_liveness(wire_rule(lp.backlink(), 4, 2, weight_gradients="once"))
    assert lines == split_lines(BACKLINK_ONCE)


def test_weights_once_of_three_flows() -> None:
    """Two go onward, the last ends; their gradients are added in the order of flows."""
    rule = lp.interlocking(3, combine="sum")
    lines = print_liveness(wire_rule(rule, 5, 5, weight_gradients="once"))
    assert select(lines, "2B.0", "2B.1", "2W") == split_lines(
        """
        2B.0  graph2 g2.0<2L† leaf2 -> gw2.0 g1.0<2B.0
        2B.1  graph2 g2.1<3B.0† leaf2† -> gw2.1 g1.1<2B.1
        2W    graph2† gw2.0† gw2.1† g2.2<3B.1† -> G2
        """
    )


def test_weights_once_on_two_ranks() -> None:
    """The gradient that comes from the other rank is read by W, during the next batch."""
    first, second = print_ranks(wire_rule(lp.backlink(), 4, 2, weight_gradients="once"), cut=1)
    assert select(first, "2RECV_B<1'", "1W'") == split_lines(
        """
        2RECV_B<1'                        -> g1.1<2B
        1W'         graph1† gw1.0† g1.1<2B† -> G1
        """
    )
    each = print_ranks(wire_rule(lp.backlink(), 4, 2, weight_gradients="each"), cut=1)
    assert second == each[1]
