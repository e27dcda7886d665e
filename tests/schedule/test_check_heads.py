"""Heads and losses run on fakes: equal ones once, different ones all."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.schedule.check_heads import check_heads
from localprop.schedule.wire import wire
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch

BATCH = Batch.of((torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)))


class Watched(nn.Module):
    """A linear head that notes the widths of the features it runs on."""

    ran: ClassVar[list[int]] = []

    def __init__(self, features: int, outputs: int, offset: int | None) -> None:
        super().__init__()
        self.linear = nn.Linear(features, outputs)
        self.offset = offset

    def forward(self, features: Tensor) -> Tensor:
        self.ran.append(features.shape[1])
        if self.offset == 2:
            raise ValueError("too far")
        logits: Tensor = self.linear(features)
        return logits


def wire_widths(widths: list[int], *, numbered: bool = False) -> Wiring:
    """The wiring of an MLP whose heads are equal, or know their module."""

    def make_aux(point: Any) -> nn.Module:
        offset = point.module if numbered else None
        return Watched(point.features[1], point.outputs, offset)

    model = lp.models.mlp(4, widths)
    partition = lp.Partition.uniform(lp.layers_of(model, torch.zeros(2, 4)), len(widths) + 1)
    return wire(lp.greedy(aux=make_aux), partition)


@pytest.fixture(autouse=True)
def forget() -> None:
    Watched.ran.clear()


def test_equal_heads_run_once() -> None:
    # Module 0 has another input than the others, which a loss may look at.
    check_heads(wire_widths([6, 6, 6, 6]), BATCH)
    assert Watched.ran == [6, 6]


def test_heads_on_other_features_run() -> None:
    check_heads(wire_widths([6, 5, 6, 5]), BATCH)
    assert sorted(Watched.ran) == [5, 6, 6]  # module 2 has the input of width 5, and module 0 of 4


def test_heads_that_differ_in_an_attribute_run_all() -> None:
    with pytest.raises(lp.BadInput, match=r"loss of module 2 .*too far"):
        check_heads(wire_widths([6, 6, 6, 6], numbered=True), BATCH)
    assert Watched.ran == [6] * 4
