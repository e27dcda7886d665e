"""The optimizers of a config, and the clipping of their gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.optim import Optimizer

from localprop.data import Batches
from localprop.training.build import prepare
from localprop.training.config import Config
from localprop.training.optimizers import make_optimizer_factory


@pytest.mark.parametrize(
    ("name", "optimizer_type"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_optimizers_are_made_by_name(name: str, optimizer_type: type[Optimizer]) -> None:
    _, learner = prepare(Config(model="mlp", optimizer=name, lr=0.25, weight_decay=0.5))
    assert {type(optimizer) for optimizer in learner.optimizers} == {optimizer_type}
    group = learner.optimizers[0].param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.5)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_fused_optimizers(name: str) -> None:
    """They train as the others do, but for rounding."""
    weights, plain = [], Config(model="mlp:8", optimizer=name, lr=0.01)
    for config in (plain, replace(plain, fused=True)):
        dataset, learner = prepare(config)
        wanted = True if config.fused else None
        assert {each.defaults["fused"] for each in learner.optimizers} == {wanted}
        for batch, _ in zip(Batches(dataset, "train", 64), range(3), strict=False):
            learner.step(batch)
        weights.append([parameter.detach() for parameter in learner.parameters()])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    factory = make_optimizer_factory(replace(plain, fast=True))
    assert factory([torch.nn.Parameter(torch.ones(2))]).defaults["fused"] is True
    elsewhere = torch.nn.Parameter(torch.ones(2, device="meta"))  # where torch has none
    assert factory([elsewhere]).defaults["fused"] is None


def test_gradients_are_clipped_for_each_optimizer() -> None:
    sgd = Config(model="mlp:8", momentum=0.0, nesterov=False, weight_decay=0.0, lr=1.0)
    moves = []
    for clip_norm in (None, 0.01):
        dataset, learner = prepare(replace(sgd, clip_norm=clip_norm))
        groups = [optimizer.param_groups[0]["params"] for optimizer in learner.optimizers]
        before = [[p.detach().clone() for p in group] for group in groups]
        learner.step(next(iter(Batches(dataset, "train", 64))))
        moves.append(
            [
                [p - old for p, old in zip(group, olds, strict=True)]
                for group, olds in zip(groups, before, strict=True)
            ]
        )
    for free, clipped in zip(*moves, strict=True):
        norm = torch.cat([move.flatten() for move in free]).norm()
        assert norm > 0.02
        for long, short in zip(free, clipped, strict=True):
            torch.testing.assert_close(short, long * (0.01 / norm), rtol=1e-3, atol=1e-6)
