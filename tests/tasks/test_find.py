"""The usual task of a model and a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localprop as lp

X = torch.randn(4, 8)
MODEL = nn.Linear(8, 3)


@pytest.mark.parametrize(
    ("targets", "task"),
    [
        (torch.tensor([0, 1, 2, 0]), lp.Classification()),
        (torch.zeros(4, 8, 8).long(), lp.Classification()),
        (torch.rand(4, 3).softmax(1), lp.Classification()),
        (torch.eye(4), lp.Classification()),
        (torch.tensor([[1.0, 1, 0], [0, 0, 0]]), lp.MultiLabel()),
        (torch.tensor([[True, True], [False, False]]), lp.MultiLabel()),
        (torch.tensor([0.5, 7, 1, -3]), lp.Regression()),
        (torch.randn(4, 3), lp.Regression()),
        (torch.rand(4, 3, 8, 8), lp.Regression()),
    ],
)
def test_targets_decide(targets: Tensor, task: lp.Task) -> None:
    assert lp.find_task(MODEL, (X, targets)) == task
    assert lp.find_task(MODEL, {"x": X, "label": targets}) == task


@pytest.mark.parametrize("targets", [torch.tensor([0.0, 1, 1]), torch.ones(3, 1)])
def test_one_yes_or_no_is_asked_for(targets: Tensor) -> None:
    with pytest.raises(lp.BadInput) as caught:
        lp.find_task(MODEL, (X, targets))
    for line in ("task=lp.MultiLabel()", "task=lp.Regression()", "task=lp.Classification()"):
        assert line in str(caught.value)


@pytest.mark.parametrize("batch", [X, (X, X, X), {"x": X}, {"x": X, "labels": [{"boxes": X}]}])
def test_other_batches_are_asked_for(batch: Any) -> None:
    with pytest.raises(lp.BadInput, match=r"No task is usual for Linear .*task=lp.task\(forward="):
        lp.find_task(MODEL, batch)
