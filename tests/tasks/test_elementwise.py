"""Losses with one target for each output equal torch's, and weigh by their elements."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import localprop as lp
from tests.helpers.micro_batches import assert_parts_sum_to_the_whole, make_outputs, weight_of

UNEVEN = (1, 4, 2)


def test_parts_of_labels_sum_to_the_whole() -> None:
    outputs, targets = make_outputs(7, 3), torch.randint(2, (7, 3))
    weights = torch.tensor([0.3, 1, 4], dtype=torch.float64)
    reference = functional.binary_cross_entropy_with_logits(
        outputs, targets.double(), pos_weight=weights
    )
    task = lp.MultiLabel(pos_weight=weights)
    assert_parts_sum_to_the_whole(task, outputs, targets, reference, UNEVEN)
    assert weight_of(task, (None, targets)) == 21


@pytest.mark.parametrize("shape", [(7,), (7, 2), (7, 3, 4, 4)])
def test_parts_of_numbers_sum_to_the_whole(shape: tuple[int, ...]) -> None:
    outputs, targets = make_outputs(*shape), torch.randn(shape, dtype=torch.float64)
    reference = functional.mse_loss(outputs, targets)
    assert_parts_sum_to_the_whole(lp.Regression(), outputs, targets, reference, UNEVEN)


@pytest.mark.parametrize("task", [lp.Regression(), lp.MultiLabel()])
def test_a_last_dimension_of_one_is_not_broadcast(task: lp.Task) -> None:
    outputs, targets = torch.randn(5, 1), torch.randint(2, (5,))
    wanted = task.loss(outputs[:, 0], (None, targets))
    assert task.loss(outputs, (None, targets)).equal(wanted)
    assert task.loss(outputs[:, 0], (None, targets[:, None])).equal(wanted)


@pytest.mark.parametrize(
    ("task", "targets", "outputs", "words"),
    [
        (lp.Regression(), torch.zeros(5), (5, 5), r"shape \(5,\), but outputs \(5, 5\)"),
        (lp.MultiLabel(), torch.full((5,), 3), (5, 1), "run from 3 to 3, but must lie in 0..1"),
    ],
)
def test_wrong_targets_are_named(
    task: lp.Task, targets: torch.Tensor, outputs: tuple[int, ...], words: str
) -> None:
    with pytest.raises(lp.BadInput, match=words):
        raise lp.BadInput(task.find_problems((None, targets), torch.Size(outputs)))


def test_right_targets_pass() -> None:
    shape = torch.Size((5, 1))
    for task in (lp.Regression(), lp.MultiLabel()):
        assert [*task.find_problems((None, torch.ones(5)), shape)] == []


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(lp.BadInput, match="need one target for each"):
        lp.Regression().loss(torch.zeros(5, 5), (None, torch.zeros(5)))


def test_negative_weights_are_refused() -> None:
    with pytest.raises(lp.BadInput, match="pos_weight has -1"):
        lp.MultiLabel(pos_weight=[1, -1])
