r"""Greedy steps with one optimizer for all segments and heads, and with fused ones.

For `localprop bench speed`; a row that says neither has an optimizer for each segment and head.

    OMP_NUM_THREADS=1 localprop bench speed --batch-size 1 --rounds 35 \
        --methods 'greedy(aux=Head(convs=0, linears=1))' --against benchmarks/one_optimizer.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer

import localprop as lp


def make_steps(
    make_network: Callable[[], nn.Module], batch: Any
) -> dict[str, Callable[[], object]]:
    """Steps by name, as `--against` takes them."""

    def make_sgd(parameters: Iterable[nn.Parameter], *, fused: bool) -> Optimizer:
        return SGD(parameters, lr=0.01, momentum=0.9, fused=fused)

    def make_adamw(parameters: Iterable[nn.Parameter], *, fused: bool) -> Optimizer:
        return AdamW(parameters, lr=0.01, fused=fused)

    def make_step(optimize: Callable[..., Optimizer], *, one: bool = False) -> Callable[[], object]:
        model = make_network()
        optimizer = optimize(model.parameters()) if one else optimize
        rule = lp.greedy(aux=lp.Head(convs=0, linears=1))
        own = {"modules": 16, "optimizer": optimizer, "sample": batch}
        learner = lp.Learner(model, rule, atomic=False, on_nonfinite="ignore", **own)
        return partial(learner.step, batch)

    plain, (images, labels) = make_network(), batch
    optimizer = SGD(plain.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step_plain() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(plain(images), labels))
        optimizer.step()

    return {
        "greedy, one optimizer": make_step(partial(make_sgd, fused=False), one=True),
        "greedy, one fused optimizer": make_step(partial(make_sgd, fused=True), one=True),
        "greedy, fused SGD": make_step(partial(make_sgd, fused=True)),
        "greedy, AdamW": make_step(partial(make_adamw, fused=False)),
        "greedy, fused AdamW": make_step(partial(make_adamw, fused=True)),
        "plain loop, fused optimizer": step_plain,
    }
