"""Builders of a rule may be the user's: what they raise is told, with the part it comes from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import localprop as lp
from tests.helpers.reference import sgd


def fail(*_: object) -> Any:
    raise ArithmeticError("on purpose")


def make_learner(rule: lp.Rule) -> lp.Learner:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    sample = torch.rand(4, 4), torch.arange(4) % 3
    return lp.Learner(model, rule, modules=2, optimizer=sgd, sample=sample)


@pytest.mark.parametrize("field", ["credit", "aux", "loss", "penalty"])
def test_a_builder_that_fails_is_named(field: str) -> None:
    with pytest.raises(lp.BadInput, match=rf"The rule's {field}, fail, .*ArithmeticError: on purp"):
        make_learner(lp.Rule(**{field: fail}))  # type: ignore[arg-type]


def test_a_credit_that_makes_no_table_is_refused() -> None:
    credit: Any = lambda partition: None  # noqa: E731
    with pytest.raises(lp.BadInput, match="returned a NoneType, but must return"):
        make_learner(lp.Rule(credit))
