"""Overlapping windows, against one connected graph in float64."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

import localprop as lp
from tests.helpers.reference import network, sgd


def test_windows_of_three() -> None:
    """L_k trains its module and the two before it.

    There are two windows in four modules, of four children each.
    """
    model, ((images, targets), *_) = network("mlp")
    learner = lp.Learner(
        model, lp.windows(size=3), modules=4, optimizer=sgd, sample=(images, targets)
    )
    copied, heads = copy.deepcopy(model), copy.deepcopy(learner.heads)
    assert isinstance(copied, nn.Sequential)
    learner.backward((images, targets))
    assert sorted(heads) == ["2", "3"]
    h = copied[:12](images)
    first = functional.cross_entropy(heads.get_submodule("2.aux")(h), targets)
    second = functional.cross_entropy(copied[12:](h), targets)
    for loss, window in ((first, copied[:12]), (second, copied[4:])):
        trained = list(window.parameters())
        found = torch.autograd.grad(loss, trained, retain_graph=True)
        for parameter, gradient in zip(trained, found, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    for a, b in zip(model.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-10)
