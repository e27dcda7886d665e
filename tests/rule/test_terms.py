"""Weighted sums of losses."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.errors import BadInput
from localprop.rule.losses import LossBuilder
from tests.helpers.local_losses import make_loss_inputs
from tests.helpers.points import count_parameters, make_point


class ConstantLoss(lp.LocalLoss):
    """A loss of a constant value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, features: Tensor, aux: nn.Module, inputs: lp.LossInputs) -> Tensor:
        return features.sum() * 0 + self.value


class DemandingLoss(ConstantLoss):
    """A loss that asks for everything that it may ask for."""

    module_input, taps, second_order = True, ("a", "b"), True


def constant(value: float) -> LossBuilder:
    return lambda point: ConstantLoss(value)


@pytest.mark.parametrize(
    ("module", "modules", "expected"),
    [
        (0, 5, 6 * 1 + 0 * 10 + 3 * 100),
        (1, 5, (6 * 2 + 3) / 3 + 2 / 3 * 10 + 300),  # a third of the way
        (3, 5, 3 * 1 + 2 * 10 + 300),
        (0, 2, 6 * 1 + 0 * 10 + 300),  # K = 2: the first weights
    ],
)
def test_weights_go_linearly_from_the_first_module_to_the_last_local_one(
    module: int, modules: int, expected: float
) -> None:
    """Three losses of 1, 10 and 100 with weights 6 -> 3, 0 -> 2 and 3."""
    terms = lp.Terms(
        (
            lp.Term(constant(1), 6, 3),
            lp.Term(constant(10), 0, 2),
            lp.Term(constant(100), 3, None),
        )
    )
    features, inputs = make_loss_inputs(2)
    loss = terms(make_point(2, module=module, modules=modules))
    assert loss(features, nn.Identity(), inputs).item() == pytest.approx(expected)


def test_a_term_without_weight_is_not_built() -> None:
    def refuse(point: lp.AttachPoint) -> lp.LocalLoss:
        raise AssertionError("built")

    terms = lp.Terms((lp.Term(lp.SimilarityLoss(), 1, 1), lp.Term(refuse, 0, 1)))
    assert count_parameters(terms(make_point(6, 4, 4, modules=4))) == 9 * 6 * 6
    with pytest.raises(AssertionError, match="built"):
        terms(make_point(6, 4, 4, module=1, modules=4))


def test_a_module_where_all_weights_are_0_is_refused() -> None:
    terms = lp.Terms((lp.Term(lp.CrossEntropy(), 1, 0), lp.Term(lp.SimilarityLoss(), 2, 0)))
    with pytest.raises(BadInput, match="Every weight"):
        terms(make_point(6, 4, 4, module=2, modules=4))


def test_a_sum_asks_for_what_its_losses_ask_for() -> None:
    plain = lp.Terms()(make_point(6, 4, 4))
    sum_of_two = lp.Terms((lp.Term(lambda point: DemandingLoss(1)), lp.Term()))(make_point(6, 4, 4))
    assert (plain.module_input, plain.taps, plain.second_order) == (False, (), False)
    assert sum_of_two.module_input
    assert sum_of_two.taps == ("a", "b")
    assert sum_of_two.second_order


def test_a_sum_reports_the_problems_of_its_losses() -> None:
    loss = lp.Terms()(make_point(6, 4, 4))
    labels = torch.tensor([0, 9])
    inputs = lp.LossInputs(torch.zeros(2, 6), labels, batch=(torch.zeros(2, 6), labels))
    (problem,) = loss.find_problems(inputs, torch.Size((2, 3)))
    assert "Labels run from 0 to 9" in problem


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: lp.Term(lp.CrossEntropy(), -1), "first=-1"),
        (lambda: lp.Term(lp.CrossEntropy(), 1, math.nan), "last=nan"),
        (lambda: lp.Terms(()), "empty"),
        (lambda: lp.Terms((lp.CrossEntropy(),)), "where Term"),  # type: ignore[arg-type]
        (lambda: lp.Terms(lp.Term()), "must be a tuple"),  # type: ignore[arg-type]
    ],
)
def test_bad_values_are_refused(make: Callable[[], object], word: str) -> None:
    with pytest.raises(BadInput, match=word):
        make()
