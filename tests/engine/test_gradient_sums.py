"""Gradients are summed in one order, so that the bits do not depend on which comes first."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.engine.flow_gradients import FlowGradients, SetAside
from localprop.engine.gradient_sums import FlowKey, GradientPart, GradientSums
from localprop.rule.table import PASS, T
from localprop.schedule.flows import Flow
from tests.helpers.schedules import wiring_of

BIG, TINY = 1e8, 1.0  # in float32 (BIG + TINY) - BIG is 0, and (BIG - BIG) + TINY is 1


def test_gradients_are_summed_in_the_order_of_their_makers() -> None:
    """Three losses whose gradients meet at one segment: of a loss there and of two later flows."""
    table = lp.CreditTable((1, 1, 1), ((T, None, None), (T, T, None), (T, PASS, T)))
    key, values, totals = FlowKey(0, 0, 0), {-1: BIG, 0: -BIG, 1: TINY}, set()
    for makers in permutations(values):
        sums = GradientSums(wiring_of(table))
        for maker in makers:
            sums.add(key, GradientPart(maker, torch.tensor(values[maker])))
        totals.add(float(sums.take(key)))
    assert totals == {TINY}


def find_flows(count: int) -> tuple[tuple[Flow, ...], ...]:
    return (tuple(Flow(frozenset({k}), True, None, 1.0) for k in range(count)),)


@pytest.mark.parametrize("microbatches", [1, 3])
def test_gradients_do_not_depend_on_which_flow_comes_first(microbatches: int) -> None:
    values = {(0, 0): [BIG, TINY, TINY], (0, 1): [-BIG, TINY, TINY], (0, 2): [TINY, TINY, BIG]}

    def total(order: list[tuple[int, int]]) -> Tensor:
        """Each flow's micro-batches in order, flows mixed."""
        weight = nn.Parameter(torch.zeros(1))
        gradients = FlowGradients({0: [weight]}, find_flows(3), microbatches)
        aside: SetAside = {}
        for flow, m in order:
            with gradients.of(0, flow, aside):
                weight.backward(torch.tensor([values[0, flow][m]]))  # type: ignore[no-untyped-call]
        gradients.add(0, aside)
        assert not aside
        assert weight.grad is not None
        return weight.grad

    one = [(flow, m) for flow in range(3) for m in range(microbatches)]
    other = [(flow, m) for m in range(microbatches) for flow in (2, 1, 0)]  # as on ranks
    assert torch.equal(total(one), total(other))
