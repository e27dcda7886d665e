"""Weights of classes: one number for each, from 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import localprop as lp


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (torch.zeros(2, 2), r"shape \(2, 2\)"),
        (torch.zeros(2, device="meta"), "on meta"),
        (torch.tensor(1.0), r"shape \(\)"),
        (torch.tensor([1.0, -1.0]), "has -1.0"),
        (torch.tensor([1.0, float("nan")]), "has nan"),
        (torch.tensor([1.0, float("inf")]), "has inf"),
    ],
)
def test_other_weights_are_refused(weights: Tensor, words: str) -> None:
    for make in (
        lambda: lp.Classification(class_weights=weights),
        lambda: lp.MultiLabel(pos_weight=weights),
    ):
        with pytest.raises(lp.BadInput, match=words):
            make()
