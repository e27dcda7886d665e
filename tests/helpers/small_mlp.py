"""A network whose tensors can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import localprop as lp
from localprop.cost.alive import ValueReading
from localprop.engine.store import Store
from tests.helpers.reference import sgd

SAMPLES = 5
GREEDY = lp.greedy(lp.Head(convs=0, linears=1))
END_TO_END = lp.end_to_end()


def make_batch(samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    return torch.zeros(samples, 4), torch.zeros(samples, dtype=torch.long)


def make_mlp(rule: lp.Rule, *, recompute: bool = False, samples: int = SAMPLES) -> lp.Learner:
    """A learner of three layers and modules, of widths 8, 6 and 3, whose steps are not atomic."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)]
    return lp.Learner(
        nn.Sequential(*layers),
        rule,
        modules=3,
        optimizer=sgd,
        sample=make_batch(samples),
        recompute=recompute,
        atomic=False,
    )


def list_alive(reading: ValueReading) -> dict[str, dict[str, int]]:
    """The bytes of each value by its name, after each action by its name."""
    return {
        str(each.action): {str(value): nbytes for value, nbytes in each.values.items()}
        for each in reading.actions
    }


def make_started(rule: lp.Rule, *, recompute: bool = False) -> lp.Learner:
    """A learner after its first step, which makes the state of optimizers."""
    learner = make_mlp(rule, recompute=recompute)
    learner.step(make_batch())
    return learner


def tamper_in(learner: lp.Learner, module: nn.Module, tamper: Callable[[Store], None]) -> Any:
    """Change the store of a step in the forward of a module."""

    def change(*_: object) -> None:
        step = learner.engine._running_step
        assert step is not None
        tamper(step.store)

    return module.register_forward_hook(change)
