"""Batches whose samples are in no dimension of their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.tasks.batch import Batch
from tests.helpers.reference import sgd

ADVICE = r"with lp.end_to_end\(\), by batch_dims=None"


class Detector(nn.Module):
    """Computes its own losses from lists, as torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(c, 8, 3, 2, 1), nn.ReLU()) for c in (3, 8, 8))
        )
        self.last = nn.Linear(8, 4)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        boxes = self.last(self.blocks(torch.stack([*images])).mean((2, 3)))
        errors = [box - each["boxes"] for box, each in zip(boxes, targets, strict=True)]
        return {"far": torch.cat(errors).abs().mean(), "large": boxes.square().mean()}


def make_lists(kind: type) -> Any:
    images = [torch.rand(3, 16, 16) for _ in range(2)]
    return kind(images), kind({"boxes": torch.rand(2 + i, 4)} for i in range(2))


def add_losses(model: nn.Module, batch: Any) -> Tensor:
    total: Tensor = sum(model(*batch).values())
    return total


TOTAL = lp.task(forward=add_losses, loss=lambda total, targets: total)


def learn_whole(model: nn.Module, rule: lp.Rule, batch: Any) -> lp.Learner:
    return lp.Learner(
        model, rule, modules=3, optimizer=sgd, sample=batch, task=TOTAL, batch_dims=None
    )


@pytest.mark.parametrize("kind", [list, tuple])
def test_samples_in_lists_are_refused_with_a_way(kind: type) -> None:
    batch = make_lists(kind)
    for task in (None, TOTAL):
        with pytest.raises(lp.BadInput, match=ADVICE):
            lp.Learner(
                Detector(), lp.end_to_end(), modules=1, optimizer=sgd, sample=batch, task=task
            )
    (problem,) = lp.check(Detector(), batch).problems
    assert "the entries of lists" in problem


def test_a_list_of_inputs_that_are_batches_is_none_of_samples() -> None:
    batch = [torch.rand(4, 3), torch.rand(4, 2)], torch.zeros(4).long()
    assert Batch.of(batch).dims == (0, 0, 0)


def test_the_way_trains_as_a_plain_loop_does() -> None:
    batch, plain = make_lists(list), Detector()
    model = deepcopy(plain)
    learner = learn_whole(model, lp.end_to_end(), batch)
    optimizer = sgd(plain.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        total = add_losses(plain, batch)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert learner.step(batch)[0] == total.item()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_its_total_has_no_heads() -> None:
    with pytest.raises(lp.BadInput, match=r"output of shape \(\) does not count the samples"):
        learn_whole(Detector(), lp.greedy(), make_lists(list))


def test_a_batch_as_a_whole_has_no_parts() -> None:
    with pytest.raises(lp.BadInput, match="cannot be split into 2 micro-batches"):
        Batch.of(make_lists(list), batch_dims=None).split(2)
