"""Wirings of equal modules and costs of actions, for tests of simulated pipelines."""

from __future__ import annotations

import torch
from torch import nn

import localprop as lp
from localprop.schedule.schedule import ActionCost, Op
from localprop.schedule.wiring import Wiring
from tests.helpers.reference import sgd


def make_wiring(rule: lp.Rule, modules: int, layers: int = 1) -> Wiring:
    """Make a wiring of equal modules of equal layers, whose backwards make all gradients."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(modules * layers)))
    batch = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    learner = lp.Learner(
        model, rule, modules=modules, optimizer=sgd, sample=batch, weight_gradients="each"
    )
    return learner.wiring


def make_cost(
    forward: float = 1, backward: float = 2, loss: float = 0, step: float = 0
) -> ActionCost:
    """Make a cost that depends only on the operation."""
    costs = {Op.F: forward, Op.B: backward, Op.L: loss, Op.S: step}
    return lambda action: costs.get(action.op, 0)
