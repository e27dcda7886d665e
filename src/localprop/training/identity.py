"""What a checkpoint was trained by: rule, seed and optimizers, on which its next step depends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from localprop.learner import Learner

# Schedulers change the learning rate, and the others choose among equal implementations.
_FREE = ("lr", "foreach", "fused", "capturable", "differentiable")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def describe_learner(learner: Learner) -> dict[str, Any] | None:
    """Describe by what a learner is trained. On several ranks all must call this.

    Returns:
        "rule" and "seed"; "optimizers", the optimizer of each parameter, with its arguments. On
        several ranks rank 0 gets those of all, and the others None.

    Example:
        >>> describe_learner(learner)["seed"]
        0
    """
    own = _list_optimizers(learner)
    merged = learner.merge({("optimizers", name): text for name, text in own.items()})
    if merged is None:
        return None
    optimizers = {name: text for (_, name), text in merged.items()}
    return _describe_rule(learner) | {"optimizers": optimizers}


def find_identity_problems(learner: Learner, saved: Mapping[str, Any]) -> Iterator[str]:
    """Find in what a learner differs from the one that `describe_learner` has described.

    Example:
        >>> list(find_identity_problems(learner, describe_learner(learner)))
        []
    """
    here = _describe_rule(learner)
    if here["rule"] != saved["rule"]:
        yield (
            f"The checkpoint was trained by {saved['rule']}, but this learner has {here['rule']}: "
            "build it with the same rule."
        )
    if here["seed"] != saved["seed"]:
        yield (
            f"The checkpoint was trained with seed={saved['seed']}, but this learner has "
            f"seed={here['seed']}: build it with the same."
        )
    different: dict[tuple[str, str], str] = {}  # a parameter for each pair that differs
    for name, optimizer in _list_optimizers(learner).items():
        there = saved["optimizers"].get(name, optimizer)  # absent: another problem names it
        if there != optimizer:
            different.setdefault((there, optimizer), name)
    for (there, optimizer), name in different.items():
        yield (
            f"optimizer: {name} was trained by {there}, but here by {optimizer}: build the same "
            "optimizer."
        )


def _describe_rule(learner: Learner) -> dict[str, Any]:
    rule = repr(replace(learner.rule, reference=""))
    return {"rule": _ADDRESS.sub("", rule), "seed": learner.seed}


def _list_optimizers(learner: Learner) -> dict[str, str]:
    """The optimizer of each parameter that requires gradients, as text."""
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    return {
        names[id(parameter)]: _describe_optimizer(optimizer)
        for optimizer in learner.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and id(parameter) in names
    }


def _describe_optimizer(optimizer: Optimizer) -> str:
    given = {key: value for key, value in optimizer.defaults.items() if key not in _FREE}
    arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return _ADDRESS.sub("", f"{type(optimizer).__name__}({arguments})")
