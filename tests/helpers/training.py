"""Learners that have been trained for a few steps, and what may be left on a model afterwards."""

from __future__ import annotations

from torch import nn

import localprop as lp
from tests.helpers.layers import cut_once
from tests.helpers.reference import network, sgd

RULES: dict[str, lp.Rule] = {
    "greedy": lp.greedy(),
    "backlink": lp.backlink(),
    "contsup": lp.contsup(),
    "auglocal": lp.auglocal(),
    "interlocking": lp.interlocking(),
    "end_to_end": lp.end_to_end(),
    "combined": lp.Rule(
        lp.BackwardLinks(2, 0.5), lp.SampledLayers(), context=lp.ContextSupply(previous=1)
    ),
}


def train(
    rule: lp.Rule, name: str = "resnet14", modules: int = 4, *, recompute: bool = False
) -> lp.Learner:
    """A learner after three steps."""
    model, batches = network(name)
    learner = lp.Learner(
        model,
        rule,
        partition=cut_once(model, batches[0], modules),
        optimizer=sgd,
        sample=batches[0],
        recompute=recompute,
    )
    for batch in batches:
        learner.step(batch)
    return learner


HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
)


def hooks_of(model: nn.Module) -> list[object]:
    """Everything that could still act on a module from outside."""
    found: list[object] = []
    for module in model.modules():
        for name in HOOKS:
            found += getattr(module, name).values()
        if "forward" in vars(module):
            found.append(module)
    return found
