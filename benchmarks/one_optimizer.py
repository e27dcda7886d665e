r"""Greedy steps with one optimizer for all segments and heads, for `localprop bench speed`.

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
from torch.optim import SGD

import localprop as lp


def make_steps(
    make_network: Callable[[], nn.Module], batch: Any
) -> dict[str, Callable[[], object]]:
    """Steps by name, as `--against` takes them."""

    def make_learner(*, fused: bool) -> lp.Learner:
        model = make_network()
        optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, fused=fused)
        rule = lp.greedy(aux=lp.Head(convs=0, linears=1))
        own = {"modules": 16, "optimizer": optimizer, "sample": batch}
        return lp.Learner(model, rule, atomic=False, on_nonfinite="ignore", **own)

    plain, (images, labels) = make_network(), batch
    optimizer = SGD(plain.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step_plain() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(plain(images), labels))
        optimizer.step()

    return {
        "greedy, one optimizer": partial(make_learner(fused=False).step, batch),
        "greedy, one fused optimizer": partial(make_learner(fused=True).step, batch),
        "plain loop, fused optimizer": step_plain,
    }
