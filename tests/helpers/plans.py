"""A network that is quick to plan for, and plans made by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import localprop as lp
from localprop.planning.candidates import Way
from localprop.planning.made_for import MadeFor

BATCH = torch.randn(512, 16), torch.randint(10, (512,))


def build_rows() -> nn.Sequential:
    """Layers whose activations weigh more than their weights, and no BatchNorm."""
    blocks = [nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(2)]
    return nn.Sequential(*blocks, nn.Linear(16, 10))


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer with two numbers of state for each parameter."""
    return torch.optim.AdamW(parameters, lr=1e-3)


def make_way(method: str, peak_mb: float, time: float, **changes: Any) -> Way:
    """A way with a peak in units of 10^6 bytes."""
    rule = lp.greedy() if method == "greedy" else lp.end_to_end()
    values = {"modules": 1, "recompute": 0, "microbatches": 1} | changes
    return Way(
        method,
        rule,
        peak_bytes=round(peak_mb * 1e6),
        resting_bytes=10**6,
        flops=round(1000 * time),
        time=time,
        **values,
    )


def make_hand_plan(budget: int | None = 5 * 10**6, **made_for: Any) -> lp.Plan:
    """The plain loop, the same with recompute, and a method with two modules, which is taken."""
    plain = make_way("end_to_end", 10, 1.0)
    again = make_way("end_to_end", 4, 1.3, recompute=1)
    local = make_way("greedy", 4.5, 1.1, modules=2, confirmed=True)
    setting = MadeFor("mlp", 32, (1, 8, 8), "sgd", "fp32", 10)
    return lp.Plan(
        ways=(plain, again, local),
        front=(again, local, plain),
        budget=budget,
        spare=0,
        notes=("a < b",),
        best=None if budget is None else local,
        made_for=setting._replace(**made_for),
    )
