"""Losses of torch and functions as tasks, and measured weights beside known ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.tasks.measure_weights import measure_weights
from tests.helpers.micro_batches import assert_parts_sum_to_the_whole, make_outputs, weight_of

UNEVEN = (1, 4, 2)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_classes() -> Tensor:
    return torch.tensor([-100, 1, 2, 0, 4, 4, -100])


def make_numbers() -> Tensor:
    return torch.rand(7, 5, dtype=torch.float64)


def make_probabilities() -> Tensor:
    return make_numbers().softmax(1)


LOSSES = [
    (nn.CrossEntropyLoss(torch.rand(5).double(), label_smoothing=0.1), make_classes),
    (nn.CrossEntropyLoss(), make_probabilities),
    (nn.NLLLoss(torch.rand(5).double(), ignore_index=4), lambda: make_classes().clamp(min=0)),
    (nn.MSELoss(), make_numbers),
    (nn.L1Loss(), make_numbers),
    (nn.SmoothL1Loss(beta=0.3), make_numbers),
    (nn.HuberLoss(delta=0.3), make_numbers),
    (nn.BCEWithLogitsLoss(pos_weight=torch.rand(5).double()), make_numbers),
    (nn.BCEWithLogitsLoss(weight=torch.rand(5).double()), make_numbers),
    (nn.BCELoss(), make_numbers),
    (nn.PoissonNLLLoss(), make_numbers),
    (nn.SoftMarginLoss(), make_numbers),
    (nn.KLDivLoss(reduction="batchmean"), make_probabilities),
    (functional.cross_entropy, make_classes),
    (functional.mse_loss, make_numbers),
    (functional.huber_loss, make_numbers),
    (functional.binary_cross_entropy_with_logits, make_numbers),
]


def name(value: object) -> str:
    """The same in every process, unlike the text of a function."""
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("loss", "make"), LOSSES, ids=name)
def test_parts_sum_to_the_whole(loss: Any, make: Callable[[], Tensor]) -> None:
    outputs, targets = make_outputs(7, 5), make()
    if isinstance(loss, nn.BCELoss):
        outputs = outputs.detach().sigmoid().requires_grad_()
    task = lp.task(loss=loss)
    assert_parts_sum_to_the_whole(task, outputs, targets, loss(outputs, targets), UNEVEN)
    assert [*task.find_problems((None, targets), outputs.shape)] == []


@pytest.mark.parametrize(("loss", "make"), LOSSES[:9], ids=name)
def test_measured_weights_are_the_known_ones(loss: Any, make: Callable[[], Tensor]) -> None:
    outputs, targets = make_outputs(7, 5), make()
    task = lp.task(loss=loss)
    parts, start = [], 0
    for size in UNEVEN:
        index = slice(start, start + size)
        parts.append(((None, targets[index]), index))
        start += size
    state = torch.get_rng_state()
    measured = measure_weights(task.loss, outputs, (None, targets), parts)
    known = [weight_of(task, part) / weight_of(task, (None, targets)) for part, _ in parts]
    assert measured == pytest.approx(known, rel=1e-9)
    assert torch.get_rng_state().equal(state)


def test_a_sum_is_measured_as_a_sum() -> None:
    outputs, targets = torch.randn(4, 2), torch.randn(4, 2)

    def total(output: Tensor, batch: Tensor) -> Tensor:
        return (output - batch).square().sum()

    parts = [(targets[:3], slice(3)), (targets[3:], slice(3, 4))]
    assert measure_weights(total, outputs, targets, parts) == pytest.approx([1, 1])


def test_parts_may_lie_in_any_dimension() -> None:
    outputs, targets = torch.randn(2, 7), torch.randn(2, 7)
    parts = [
        (targets[:, :3], (slice(None), slice(3))),
        (targets[:, 3:], (slice(None), slice(3, 7))),
    ]
    measured = measure_weights(functional.mse_loss, outputs, targets, parts)
    assert measured == pytest.approx([3 / 7, 4 / 7])


def test_a_loss_that_compares_samples_cannot_be_split() -> None:
    outputs = torch.randn(6, 4)

    def contrast(output: Tensor, batch: Tensor) -> Tensor:
        return functional.cross_entropy(output @ output.T, torch.arange(len(output)))

    parts = [(outputs[:2], slice(2)), (outputs[2:], slice(2, 6))]
    with pytest.raises(lp.BadInput, match=r"cannot be split into 2 .*microbatches=1.*weight="):
        measure_weights(contrast, outputs, outputs, parts)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_losses_that_are_no_mean_are_refused(reduction: str) -> None:
    with pytest.raises(lp.BadInput, match=f"reduction='{reduction}', but a loss must be a mean"):
        lp.task(loss=nn.MSELoss(reduction=reduction))


def test_losses_with_parameters_are_refused() -> None:
    with pytest.raises(lp.BadInput, match="parameters, which nobody would train"):
        lp.task(loss=nn.Linear(2, 2))


def test_a_subclass_of_a_torch_loss_stays_what_it_is() -> None:
    class Focal(nn.CrossEntropyLoss):
        def forward(self, output: Tensor, targets: Tensor) -> Tensor:
            return 2 * super().forward(output, targets)

    output, targets = torch.randn(7, 5), make_classes()
    task = lp.task(loss=Focal())
    assert task.loss(output, (None, targets)).equal(2 * functional.cross_entropy(output, targets))
    assert task.weight((None, targets)) is None


def test_functions_read_a_batch_of_any_form() -> None:
    class Adder(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"sum": a + b, "difference": a - b}

    batch = (torch.ones(3), torch.ones(3), torch.tensor([1.0, 2.0, 3.0]))
    task = lp.task(
        forward=lambda model, batch: model(*batch[:2])["sum"],
        targets=lambda batch: batch[2],
        loss=lambda output, targets: (output - targets).abs().mean(),
        weight=len,
    )
    output = task.forward(Adder(), batch)
    assert task.loss(output, batch) == pytest.approx(2 / 3)
    assert task.weight(batch) == 3
    assert task.targets(batch) is batch[2]


def test_the_loss_may_get_the_whole_batch() -> None:
    task = lp.task(
        loss=lambda output, batch: (batch["w"] * output).mean(), targets=lambda batch: batch
    )
    assert task.loss(torch.ones(2), {"w": torch.tensor([1.0, 3.0])}) == 2
    assert task.weight({"w": torch.ones(2)}) is None
    assert task.targets({"w": torch.ones(2)}) is None


def test_another_task_judges() -> None:
    task = lp.task(forward=lambda model, batch: model(batch), loss=lp.CausalLM())
    labels = torch.tensor([[0, 1, 2]])
    assert task.weight({"labels": labels}) == 2
    assert [*task.find_problems({"labels": labels}, torch.Size((1, 3, 2)))]
    assert lp.task(loss=lp.CausalLM()) == lp.CausalLM()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "loss is None, but must be a function"),
        ({"loss": "mse", "weight": 3}, "weight is int.*\n.*loss is str"),
    ],
)
def test_arguments_that_are_no_functions_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(lp.BadInput, match=words):
        lp.task(**arguments)


def test_what_a_loss_needs_and_returns_is_checked() -> None:
    task = lp.task(loss=lambda output, targets: output - targets)
    with pytest.raises(lp.BadInput, match=r"returns a float32 tensor \(2,\), but a loss is a mean"):
        task.loss(torch.ones(2), (None, torch.ones(2)))
    with pytest.raises(lp.BadInput, match="no targets for <lambda>"):
        task.loss(torch.ones(2), torch.ones(2))


def test_elements_are_not_broadcast() -> None:
    task = lp.task(loss=nn.L1Loss())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert task.loss(torch.ones(3, 1), (None, torch.tensor([1.0, 2.0, 3.0]))) == 1
