r"""Greedy steps with one optimizer for all segments and heads, and with fused ones.

For `localprop bench speed`; a row that says neither has an optimizer for each segment and head.

    OMP_NUM_THREADS=1 localprop bench speed --batch-size 1 --rounds 35 \
        --methods 'greedy(aux=Head(convs=0, linears=1))' --against benchmarks/one_optimizer.py
"""

from __future__ import annotations

from collections.abc import Callable
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

    def make_learner(kind: type[Optimizer] = SGD, *, one: bool = True, fused: bool) -> lp.Learner:
        model, options = make_network(), {"momentum": 0.9} if kind is SGD else {}

        def make_optimizer(parameters: list[nn.Parameter]) -> Optimizer:
            return kind(parameters, lr=0.01, fused=fused, **options)  # type: ignore[call-arg]

        optimizer = make_optimizer(list(model.parameters())) if one else make_optimizer
        rule = lp.greedy(aux=lp.Head(convs=0, linears=1))
        return lp.Learner(model, rule, modules=16, optimizer=optimizer, sample=batch)

    plain, (images, labels) = make_network(), batch
    optimizer = SGD(plain.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step_plain() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(plain(images), labels))
        optimizer.step()

    return {
        "greedy, one optimizer": partial(make_learner(fused=False).step, batch),
        "greedy, one fused optimizer": partial(make_learner(fused=True).step, batch),
        "greedy, fused SGD": partial(make_learner(one=False, fused=True).step, batch),
        "greedy, AdamW": partial(make_learner(AdamW, one=False, fused=False).step, batch),
        "greedy, fused AdamW": partial(make_learner(AdamW, one=False, fused=True).step, batch),
        "plain loop, fused optimizer": step_plain,
    }
