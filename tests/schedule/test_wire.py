"""Wiring: a network's layers, cut into segments by a credit table."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from torch import nn

import localprop as lp
from tests.helpers.reference import sgd
from tests.helpers.schedules import tables, wire_mlp, wiring_of


def test_a_backward_link_cuts_modules_into_body_and_tail() -> None:
    segments = wire_mlp(lp.BackwardLinks(1)).segments
    assert [(list(s.layers), s.module, s.starts_module) for s in segments] == [
        ([0, 1], 0, True),
        ([2], 0, False),
        ([3, 4], 1, True),
        ([5], 1, False),
        ([6, 7], 2, True),
        ([8], 2, False),
        ([9, 10, 11], 3, True),
    ]


@settings(max_examples=30, deadline=None)
@given(tables())
def test_segments_are_the_runs_of_equal_columns(table: lp.CreditTable) -> None:
    segments = wiring_of(table).segments
    layers = [layer for segment in segments for layer in segment.layers]
    assert layers == list(range(sum(table.sizes)))
    module = [k for k, size in enumerate(table.sizes) for _ in range(size)]
    for segment in segments:
        assert {(module[layer], table.column(layer)) for layer in segment.layers} == {
            (segment.module, table.column(segment.layers[0]))
        }
    for one, other in pairwise(segments):
        columns = table.column(one.layers[-1]), table.column(other.layers[0])
        assert one.module != other.module or columns[0] != columns[1]


def test_frozen_ties_may_cross_cuts() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    first.weight.requires_grad_(False)
    model = nn.Sequential(nn.Linear(4, 4), first, nn.Linear(4, 4), second)
    batch = (torch.randn(8, 4), torch.arange(8) % 4)
    lp.Learner(model, lp.greedy(), modules=4, optimizer=sgd, sample=batch).step(batch)
