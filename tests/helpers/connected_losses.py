"""Local losses of a connected copy, and the comparisons that several methods need."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.rule.losses import Penalty
from tests.helpers.connected import Connected, Losses, compare
from tests.helpers.reference import NETWORKS, Batches, network, prefixed

AddPenalty = Callable[[Connected, Losses], Losses]  # the losses, each with its penalty


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over samples, or over the positions of all samples."""
    if logits.ndim > 2:
        logits, targets = logits.flatten(0, 1), targets.flatten()
    return functional.cross_entropy(logits, targets)


def task_loss(connected: Connected) -> Tensor:
    """The cross-entropy of the network's own outputs."""
    return cross_entropy(connected.outputs[-1], connected.targets)


def local_loss(connected: Connected, k: int) -> Tensor:
    """The cross-entropy of module k's auxiliary network; the last one is the identity."""
    return cross_entropy(connected.aux(k)(connected.outputs[k + 1]), connected.targets)


def loss_of(learner: lp.Learner, k: int) -> nn.Module:
    """Loss k, a module."""
    return learner.heads.get_submodule(f"{k}.loss")


def compare_penalty(
    name: str, penalty: Penalty, add_penalty: AddPenalty, *, modules: int = 4, parts: int = 1
) -> None:
    """Train a network of NETWORKS by cross-entropies with a penalty, and compare with a copy."""

    def losses(connected: Connected) -> Losses:
        return add_penalty(connected, {k: local_loss(connected, k) for k in range(modules)})

    model, batches = network(name)
    rule, to_layers = lp.Rule(penalty=penalty), NETWORKS[name][1]
    compare(rule, model, batches, to_layers, losses, modules=modules, parts=parts)


def assert_trains_like(
    connected: Connected,
    learner: lp.Learner,
    batches: Batches,
    losses: Callable[[Connected], Losses],
    before: Callable[[Connected], None] = lambda connected: None,
) -> None:
    """Train a learner and its copy, and compare each step's losses and the final parameters.

    Buffers are not compared: where `losses` writes a BatchNorm out, the copy's do not move.
    """
    for batch in batches:
        found = learner.step(batch)
        values = connected.step(batch, losses, before=before)
        expected = [values[k] for k in range(len(connected.modules))]
        assert [loss.item() for loss in found] == pytest.approx(expected, abs=1e-9)
    assert_same_parameters(learner.model, connected.model)
    assert_same_parameters(learner.heads, connected.heads)


def assert_same_parameters(one: nn.Module, other: nn.Module) -> None:
    pairs: Iterable[tuple[tuple[str, Tensor], Tensor]] = zip(
        one.named_parameters(), other.parameters(), strict=True
    )
    for (name, a), b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=prefixed(name))
