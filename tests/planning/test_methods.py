"""Every method can be a row of a plan, or is refused by name; what is replayed is what runs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

import localprop as lp
from localprop import methods
from localprop.cost.layer_costs import Network
from localprop.methods.parse import parse_rule
from localprop.network.find_layers import layers_of
from localprop.planning.candidates import Candidates, Way
from localprop.tasks.batch import Batch
from tests.helpers.reference import sgd

BATCH = torch.zeros(8, 3, 16, 16), torch.zeros(8).long()


@cache
def make_candidates() -> Candidates:
    model, task = lp.models.resnet8(), lp.Classification()
    layers = layers_of(model, BATCH, task=task)
    return Candidates(Network(model, layers, task, Batch.of(BATCH), sgd), [1])


def make_way(method: str, modules: int) -> Way:
    plain = make_candidates().plain
    return replace(plain, method=method, rule=parse_rule(method), modules=modules, flops=0)


@pytest.mark.parametrize("method", methods.__all__)
def test_each_method_can_be_planned_with(method: str) -> None:
    # With as many modules as layers, SOLO's heads and with fewer AugLocal's have no place.
    modules = 4 if method == "auglocal" else 3
    assert make_candidates().wire(parse_rule(method), modules).objectives


@pytest.mark.parametrize(("method", "is_replayed"), [("infopro", True), ("lopt", False)])
def test_heads_that_depend_on_more_than_their_layer_are_not_replayed(
    method: str, is_replayed: bool
) -> None:
    candidates, way = make_candidates(), make_way(method, 2)
    (found,) = candidates._list_one(way)
    assert found.confirmed != is_replayed
    read = candidates.confirm(way)
    assert found.peak_bytes == pytest.approx(read.peak_bytes, rel=1e-3)
    assert found.flops == read.flops
