"""Heads of networks with an output for each position."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from tests.helpers.reference import sgd


def test_heads_whose_convolutions_halve_the_map() -> None:
    """The usual head halves the map where the network grows wider; its output is brought back."""
    blocks = [
        nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU())
        for inputs, outputs, stride in ((3, 8, 1), (8, 16, 2), (16, 32, 2), (32, 32, 1))
    ]
    model = nn.Sequential(*blocks, nn.Upsample(scale_factor=4), nn.Conv2d(32, 4, 1))
    batch = torch.randn(2, 3, 16, 16), torch.randint(4, (2, 16, 16))
    learner = lp.Learner(
        model, lp.greedy(), modules=4, optimizer=sgd, sample=batch, task=lp.Segmentation()
    )
    for k, size in enumerate((16, 8, 4)):
        channels = 8 * 2**k
        features = torch.randn(2, channels, size, size)
        assert learner.heads[str(k)]["aux"](features).shape == (2, 4, 16, 16)  # type: ignore[index]
    larger = torch.randn(2, 3, 24, 20), torch.randint(4, (2, 24, 20))
    assert len(learner.step(larger)) == 4


class OneNumber(nn.Module):
    """Blocks, and one output for each sample without a dimension of its own, or their mean."""

    def __init__(self, total: bool = False) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)))
        self.last, self.total = nn.Linear(8, 1), total

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.last(self.blocks(x)).squeeze(-1)
        return values.square().mean() if self.total else values


def compare_each(outputs: Tensor, targets: Tensor) -> Tensor:
    """torch would compare each output with each target, if their shapes differed."""
    return (outputs - targets).square().mean()


@pytest.mark.parametrize("task", [None, lp.task(loss=compare_each)])
def test_heads_of_one_number_for_each_sample(task: lp.Task | None) -> None:
    batch = torch.randn(6, 8), torch.randn(6)
    learner = lp.Learner(
        OneNumber(), lp.greedy(), modules=3, optimizer=sgd, sample=batch, task=task
    )
    heads: Any = learner.heads
    features = learner.model.get_submodule("blocks.0")(batch[0])
    outputs = heads["0"]["aux"](features)
    assert outputs.shape == (6,)
    losses = learner.step(batch)
    assert losses[0] == pytest.approx(compare_each(outputs, batch[1]).item())
    assert len(learner.step((torch.randn(1, 8), torch.randn(1)))) == 3  # it stays (1,)


def test_a_total_over_the_batch_has_no_heads() -> None:
    """Models that compute their own loss, such as detectors, return one."""
    batch = torch.randn(6, 8), torch.randn(6)
    task = lp.task(forward=lambda model, batch: model(batch[0]), loss=lambda total, _: total)

    def learn(rule: lp.Rule) -> lp.Learner:
        model = OneNumber(total=True)
        return lp.Learner(model, rule, modules=3, optimizer=sgd, sample=batch, task=task)

    learner = learn(lp.end_to_end())
    total = learner.model(batch[0])
    assert learner.step(batch)[0] == pytest.approx(total.item())
    words = r"output of shape \(\) does not count the samples"
    with pytest.raises(lp.BadInput, match=words):
        learn(lp.greedy())
    (problem,) = lp.check(learner.model, batch, task=task).problems
    assert re.search(words, problem)
