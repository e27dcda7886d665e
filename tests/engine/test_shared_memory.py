"""Gradients that autograd keeps in one memory, behind views, do not change each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from tests.helpers.reference import sgd

WIDTH = 6
# One sample: a parameter of shape (1, WIDTH) then gets the gradient of its input as it is.
ONE = (torch.randn(1, WIDTH, dtype=torch.float64), torch.tensor([1]))


class Shift(nn.Module):
    """Adds a parameter: through views, so that both gradients share memory, or without them."""

    def __init__(self, *, views: bool) -> None:
        super().__init__()
        self.views = views
        self.shift = nn.Parameter(torch.randn(1, WIDTH))

    def forward(self, features: Tensor) -> Tensor:
        if not self.views:
            return features + self.shift
        return (features.unsqueeze(1) + self.shift.unsqueeze(1)).squeeze(1)


def build_network(*, views: bool) -> nn.Sequential:
    blocks = [
        nn.Sequential(Shift(views=views), nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(4)
    ]
    return nn.Sequential(*blocks, nn.Linear(WIDTH, 3))


class ShiftHead:
    """An auxiliary network that shifts its features first."""

    def __init__(self, *, views: bool) -> None:
        self.views = views

    def __call__(self, point: lp.AttachPoint) -> nn.Module:
        return nn.Sequential(Shift(views=self.views), nn.Linear(WIDTH, point.outputs))


class TapLoss(lp.LocalLoss):
    """Cross-entropy of the features plus an inner output, added through views or without."""

    def __init__(self, tap: str, *, views: bool) -> None:
        super().__init__()
        self.taps, self.views = (tap,), views

    def forward(self, features: Tensor, aux: nn.Module, inputs: lp.LossInputs) -> Tensor:
        tap = inputs.taps[self.taps[0]]
        if self.views:
            total = (features.unsqueeze(1) + tap.unsqueeze(1)).squeeze(1)
        else:
            total = features + tap
        return functional.cross_entropy(aux(total), inputs.targets)


class TapLosses:
    """Builds these losses, of the linear layer in the block that ends the module."""

    def __init__(self, *, views: bool) -> None:
        self.views = views

    def __call__(self, point: lp.AttachPoint) -> lp.LocalLoss:
        block = point.layers.names[point.layer].split(".")[0]
        return TapLoss(f"{block}.1", views=self.views)


def train_all_before(partition: lp.Partition) -> lp.CreditTable:
    """Each loss trains all layers before it, at half the weight in the modules before its own."""
    sizes = tuple(map(len, partition.modules))
    own, half = lp.Entry(train=True), lp.Entry(train=True, weight=0.5)
    rows = ((own,) * sizes[0] + (None,) * sizes[1], (half,) * sizes[0] + (own,) * sizes[1])
    return lp.CreditTable(sizes, rows)


def find_gradients(*, views: bool, where: str) -> dict[str, Tensor]:
    """The gradients of a step, in which gradients are scaled and summed in place."""
    torch.manual_seed(0)
    rule = lp.Rule(
        train_all_before,
        aux=ShiftHead(views=views and where == "head"),
        loss=TapLosses(views=views) if where == "tap" else lp.CrossEntropy(),
    )
    model = build_network(views=views and where == "layer").double()
    learner = lp.Learner(model, rule, modules=2, optimizer=sgd, sample=ONE)
    learner.backward(ONE)
    named = (*model.named_parameters(), *learner.heads.named_parameters("heads"))
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("where", ["layer", "head", "tap"])
def test_shared_gradients_are_those_of_the_same_network_without_views(where: str) -> None:
    expected, found = (find_gradients(views=views, where=where) for views in (False, True))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
        assert gradient.any(), name
