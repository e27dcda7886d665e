"""Copies of the network's parameters in auxiliary networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from tests.helpers.reference import assert_same_state, aux_of, network, sgd


class CopyingHead(nn.Module):
    """A classifier, and a copy of a parameter of the network that it adds to its logits."""

    def __init__(self, width: int, outputs: int, parameter_copy: lp.ParameterCopy) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, outputs)
        self.copy = nn.Parameter(torch.zeros(outputs, width), requires_grad=False)
        self.parameter_copies = (parameter_copy,)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(features)
        return logits + features @ self.copy.T


@dataclass(frozen=True)
class CopyingHeads:
    """Builds heads that copy the weight of the network's classifier."""

    decay: float = 0.0
    every: int = 1
    lag: int = 0

    def __call__(self, point: lp.AttachPoint) -> nn.Module:
        parameter_copy = lp.ParameterCopy(
            "14.weight", "copy", decay=self.decay, every=self.every, lag=self.lag
        )
        return CopyingHead(point.features[-1], point.outputs, parameter_copy)


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        # w0 is the classifier before the first step, w1 after it, and so on.
        (CopyingHeads(), lambda w: [w[0], w[1], w[2], w[3]]),
        # Every second step: steps 0 and 2.
        (CopyingHeads(every=2), lambda w: [w[0], w[1], w[1], w[3]]),
        (CopyingHeads(lag=1), lambda w: [w[0], w[0], w[1], w[2]]),
        (CopyingHeads(decay=0.75), lambda w: [0 * w[0], w[1] / 4, w[1] * 3 / 16 + w[2] / 4]),
        (CopyingHeads(decay=0.75, lag=1), lambda w: [0 * w[0], w[0] / 4, w[0] * 3 / 16 + w[1] / 4]),
    ],
    ids=["copied", "every second step", "lag", "averaged", "averaged with a lag"],
)
def test_copies_follow_their_source(
    heads: CopyingHeads, expected: Callable[[list[Tensor]], list[Tensor]]
) -> None:
    model, batches = network("mlp")
    learner = lp.Learner(model, lp.greedy(aux=heads), modules=4, optimizer=sgd, sample=batches[0])
    source, target = model.get_parameter("14.weight"), aux_of(learner, 0).get_parameter("copy")
    sources, copies = [source.detach().clone()], [target.clone()]
    for batch in batches:
        learner.step(batch)
        sources.append(source.detach().clone())
        copies.append(target.clone())
    wanted = expected(sources)
    for copied, value in zip(copies[: len(wanted)], wanted, strict=True):
        torch.testing.assert_close(copied, value, rtol=0, atol=1e-12)


def test_the_source_of_a_copy_is_not_trained_through_it() -> None:
    """The head's gradient reaches its features through the copy, but not the source."""
    model, (batch, *_) = network("mlp")
    frozen = model.get_submodule("14").requires_grad_(False)
    before = copy.deepcopy(frozen)
    rule = lp.greedy(aux=CopyingHeads())
    learner = lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batch)
    learner.step(batch)
    assert_same_state(frozen, before)
    assert torch.equal(aux_of(learner, 0).get_parameter("copy"), frozen.get_parameter("weight"))


@pytest.mark.parametrize("lag", [0, 1])
def test_a_copy_right_after_a_step_needs_that_step(lag: int) -> None:
    """An optimizer of all parameters steps at the end, so only the values before it are there."""
    model, (batch, *_) = network("mlp")
    whole = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = lp.greedy(aux=CopyingHeads(lag=lag))
    if lag:
        lp.Learner(model, rule, modules=4, optimizer=whole, sample=batch).step(batch)
    else:
        with pytest.raises(lp.BadInput, match=r"Loss 0 .* .14\.weight. right after its step"):
            lp.Learner(model, rule, modules=4, optimizer=whole, sample=batch)
