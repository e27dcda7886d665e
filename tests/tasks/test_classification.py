"""Classification equals torch's cross-entropy, and its weights are the mean's denominator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import localprop as lp
from tests.helpers.micro_batches import assert_parts_sum_to_the_whole, make_outputs, weight_of

UNEVEN = (1, 4, 2)
WEIGHTS = (0.3, 1.0, 2.7, 0.1, 5.5)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_labels(*shape: int, ignored: float = 0.0) -> Tensor:
    labels = torch.randint(5, shape)
    return labels.masked_fill(torch.rand(shape) < ignored, -100)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_samples_equal_torch_to_the_bit(smoothing: float, weights: Any) -> None:
    logits, labels = torch.randn(7, 5), make_labels(7, ignored=0.3)
    task = lp.Classification(smoothing, weights)
    weight = None if weights is None else torch.tensor(weights)
    wanted = functional.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    assert task.loss(logits, (None, labels)).equal(wanted)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_positions_equal_torch_to_the_bit(smoothing: float) -> None:
    logits, labels = torch.randn(3, 4, 5), make_labels(3, 4, ignored=0.3)
    flat = logits.flatten(0, -2), labels.flatten()
    wanted = functional.cross_entropy(*flat, label_smoothing=smoothing)
    for task in (lp.Classification(smoothing), lp.TokenClassification(smoothing)):
        assert task.loss(logits, (None, labels)).equal(wanted)


@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 5, 4, 6), (3, 5, 2, 4, 6), (3, 5, 5, 6)])
def test_torchs_own_form_equals_torch_to_the_bit(shape: tuple[int, ...]) -> None:
    logits, labels = torch.randn(shape), make_labels(shape[0], *shape[2:])
    wanted = functional.cross_entropy(logits, labels)
    assert lp.Classification().loss(logits, (None, labels)).equal(wanted)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_totals_equal_torchs_sum_to_the_bit(smoothing: float, weights: Any) -> None:
    logits, labels = torch.randn(3, 4, 5), make_labels(3, 4, ignored=0.3)
    weight = None if weights is None else torch.tensor(weights)
    wanted = functional.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        weight=weight,
        label_smoothing=smoothing,
        reduction="sum",
    )
    for task in (
        lp.Classification(smoothing, weights),
        lp.task(loss=lp.Classification(smoothing, weights)),
    ):
        assert task.total(logits, (None, labels)).equal(wanted)


def test_totals_are_the_loss_times_its_denominator() -> None:
    output, targets = torch.randn(3, 4), torch.randn(3, 4)
    total = lp.Regression().total(output, (None, targets))
    torch.testing.assert_close(total, (output - targets).square().sum())
    unknown = lp.task(loss=lambda output, targets: output.mean())
    with pytest.raises(lp.BadInput, match="give weight="):
        unknown.total(output, (None, targets))
    known = lp.task(loss=lambda output, targets: output.mean(), weight=lambda targets: 2.0)
    torch.testing.assert_close(known.total(output, (None, targets)), output.mean() * 2)


def test_a_dimension_that_cannot_be_told_is_asked_for() -> None:
    logits, labels = torch.randn(3, 5, 5), make_labels(3, 5)
    with pytest.raises(lp.BadInput, match=r"dimension 1 or in the last.*Classification\(dim=-1\)"):
        lp.Classification().loss(logits, (None, labels))
    last = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert lp.Classification(dim=-1).loss(logits, (None, labels)).equal(last)
    first = functional.cross_entropy(logits, labels)
    assert lp.Classification(dim=1).loss(logits, (None, labels)).equal(first)


def test_probabilities_equal_torch() -> None:
    logits, soft = torch.randn(3, 5), torch.rand(3, 5).softmax(1)
    wanted = functional.cross_entropy(logits, soft, label_smoothing=0.1)
    assert lp.Classification(0.1).loss(logits, (None, soft)).equal(wanted)


def test_probabilities_of_positions_need_the_dimension() -> None:
    logits, soft = torch.randn(3, 4, 5), torch.rand(3, 4, 5).softmax(-1)
    with pytest.raises(lp.BadInput, match="say which"):
        lp.Classification().loss(logits, (None, soft))
    wanted = functional.cross_entropy(logits.movedim(-1, 1), soft.movedim(-1, 1))
    task = lp.Classification(dim=-1)
    torch.testing.assert_close(task.loss(logits, (None, soft)), wanted)
    assert weight_of(task, (None, soft)) == 12


@pytest.mark.parametrize("sizes", [UNEVEN, (7,), (1,) * 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("shape", [(7,), (7, 4)])
def test_parts_sum_to_the_whole(
    shape: tuple[int, ...], weights: Any, smoothing: float, sizes: tuple[int, ...]
) -> None:
    outputs, labels = make_outputs(*shape, 5), make_labels(*shape, ignored=0.3)
    labels[0] = -100  # a part without labels
    reference = functional.cross_entropy(
        outputs.flatten(0, -2),
        labels.flatten(),
        weight=weights and torch.tensor(weights, dtype=torch.float64),
        label_smoothing=smoothing,
    )
    task = lp.Classification(smoothing, weights)
    assert_parts_sum_to_the_whole(task, outputs, labels, reference, sizes)


def test_a_part_of_classes_that_weigh_nothing_adds_nothing() -> None:
    outputs, labels = make_outputs(7, 5), make_labels(7)
    labels[:1], labels[1:] = 3, labels[1:].clamp(max=2)
    weights = (1.0, 2.0, 3.0, 0.0, 5.0)
    weight = torch.tensor(weights, dtype=torch.float64)
    reference = functional.cross_entropy(outputs, labels, weight=weight)
    task = lp.Classification(class_weights=weights)
    assert_parts_sum_to_the_whole(task, outputs, labels, reference, UNEVEN)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_parts_sum_to_the_whole_with_probabilities(weights: Any) -> None:
    outputs, soft = make_outputs(7, 5), torch.rand(7, 5, dtype=torch.float64).softmax(1)
    weight = weights and torch.tensor(weights, dtype=torch.float64)
    reference = functional.cross_entropy(outputs, soft, weight=weight, label_smoothing=0.1)
    task = lp.Classification(0.1, weights)
    assert_parts_sum_to_the_whole(task, outputs, soft, reference, UNEVEN)


def test_parts_of_pixels_sum_to_the_whole() -> None:
    outputs, labels = make_outputs(7, 5, 4, 3), make_labels(7, 16, 12)
    labels[:2, :9] = 255
    larger = functional.interpolate(outputs, size=(16, 12), mode="bilinear", align_corners=False)
    reference = functional.cross_entropy(larger, labels, ignore_index=255)
    assert_parts_sum_to_the_whole(lp.Segmentation(), outputs, labels, reference, UNEVEN)


def test_parts_of_shifted_labels_sum_to_the_whole() -> None:
    outputs, labels = make_outputs(7, 6, 5), make_labels(7, 6, ignored=0.3)
    labels[0, 1:] = -100  # its first label is no target, either
    cut = outputs[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    task = lp.CausalLM(label_smoothing=0.1)
    reference = functional.cross_entropy(*cut, label_smoothing=0.1)
    assert_parts_sum_to_the_whole(task, outputs, labels, reference, UNEVEN)
    assert weight_of(task, (None, labels)) == (labels[:, 1:] != -100).sum()


def test_the_weight_is_the_sum_of_class_weights_of_labels_that_count() -> None:
    task = lp.Classification(class_weights=[1, 10, 100], ignore_index=2)
    assert weight_of(task, (None, torch.tensor([0, 1, 1, 2]))) == 21


def test_class_weights_may_be_a_tensor_and_compare() -> None:
    task = lp.Classification(class_weights=torch.tensor([1.0, 2.0]))
    assert task == lp.Classification(class_weights=[1, 2])
    assert repr(task) == (
        "Classification(label_smoothing=0.0, class_weights=(1.0, 2.0), ignore_index=-100, dim=None)"
    )


def find_problems(task: lp.Task, targets: Tensor, *outputs: int) -> str:
    return "\n".join(task.find_problems((None, targets), torch.Size(outputs)))


@pytest.mark.parametrize(
    ("task", "targets", "outputs", "words"),
    [
        (
            lp.Classification(),
            torch.tensor([0, 12]),
            (2, 10),
            "Labels run from 0 to 12, but the model has 10 outputs: labels must lie in 0..9",
        ),
        (lp.Classification(), torch.tensor([-1, 2]), (2, 10), "Labels run from -1 to 2"),
        (lp.Classification(), torch.tensor([0, 2]).int(), (2, 10), r"use targets.long\(\)"),
        (lp.Classification(), torch.zeros(2).long(), (2, 1), "always 0: give the model one output"),
        (lp.Classification(), torch.rand(2, 10), (2, 10), "neither classes .* nor probabilities"),
        (lp.Classification(), torch.zeros(2, 10).long(), (2, 10), r"task=lp.MultiLabel\(\)"),
        (lp.Classification(), torch.zeros(2, 9).long(), (2, 12, 10), r"\(2, 12\) or \(2, 10\)"),
        (lp.Classification(class_weights=[1]), torch.zeros(2).long(), (2, 3), "has 1 weights, but"),
        (lp.Segmentation(), torch.full((2, 8, 8), 30), (2, 21, 2, 2), "run from 30 to 30"),
        (lp.CausalLM(), torch.tensor([[0, 12]]), (1, 2, 10), "run from 12 to 12"),
    ],
)  # fmt: skip
def test_wrong_targets_are_named(
    task: lp.Task, targets: Tensor, outputs: tuple[int, ...], words: str
) -> None:
    with pytest.raises(lp.BadInput, match=words):
        raise lp.BadInput(find_problems(task, targets, *outputs))


@pytest.mark.parametrize(
    ("task", "targets", "outputs"),
    [
        (lp.Classification(), torch.tensor([0, -100, 9]), (3, 10)),
        (lp.Classification(), torch.tensor([-100, -100]), (2, 10)),
        (lp.Classification(), torch.tensor([[0.25, 0.75]]), (1, 2)),
        (lp.Segmentation(), torch.full((2, 8, 8), 255), (2, 21, 2, 2)),
        (lp.CausalLM(), torch.tensor([[12, 0]]), (1, 2, 10)),
    ],
)
def test_right_targets_pass(task: lp.Task, targets: Tensor, outputs: tuple[int, ...]) -> None:
    assert find_problems(task, targets, *outputs) == ""


def test_targets_that_are_missing_are_asked_for() -> None:
    with pytest.raises(lp.BadInput, match=r"no tensor of targets .*targets=lambda batch"):
        lp.Classification().loss(torch.zeros(2, 3), {"x": torch.zeros(2)})


def test_wrong_arguments_are_refused_together() -> None:
    with pytest.raises(lp.BadInput) as caught:
        lp.Classification(label_smoothing=2, class_weights=[0, -1])
    assert len(caught.value.problems) == 3
