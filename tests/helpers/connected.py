"""What a learner trains, copied and run as one graph without cuts.

L_k trains the layers of module k and its own head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from tests.helpers.layers import cut_once
from tests.helpers.reference import (
    Batches,
    Term,
    ToLayers,
    add_gradients,
    assert_moved,
    assert_same_state,
    sgd,
)

Losses = dict[int, Tensor]


class Connected:
    """Copies of a learner's model and heads.

    Attributes:
        outputs: the step's input, and then the output of each module.
        inner: the outputs of the network's modules in this step, by name.
        targets: the targets of the step.
    """

    def __init__(self, learner: lp.Learner, to_layers: ToLayers) -> None:
        self.model, self.heads = copy.deepcopy(learner.model), copy.deepcopy(learner.heads)
        layers = to_layers(self.model)
        self.modules = [
            nn.ModuleList(layers[i] for i in module) for module in learner.partition.modules
        ]
        self.outputs: list[Tensor] = []
        self.inner: dict[str, Tensor] = {}
        self.targets = torch.empty(0)
        self.velocity: dict[nn.Parameter, Tensor] = {}
        for path, module in self.model.named_modules():
            if path:
                module.register_forward_hook(partial(self._record, path))

    def aux(self, k: int) -> nn.Module:
        return self.heads.get_submodule(f"{k}.aux")

    def loss(self, k: int) -> nn.Module:
        return self.heads.get_submodule(f"{k}.loss")

    def _record(self, path: str, module: nn.Module, args: object, output: Tensor) -> Tensor:
        self.inner[path] = output
        return output.clone()  # some networks write into it

    def _forward(self, x: Tensor) -> None:
        self.outputs = [x]
        for module in self.modules:
            for layer in module.children():
                x = layer(x)
            self.outputs.append(x)

    def step(
        self,
        batch: tuple[Tensor, Tensor],
        losses: Callable[[Connected], Losses],
        parts: int = 1,
        before: Callable[[Connected], None] = lambda connected: None,
        after: Callable[[Connected], None] = lambda connected: None,
    ) -> dict[int, float]:
        """SGD with momentum on `parts` micro-batches.

        `before` and `after` run when all gradients are known, before and after the update.
        """
        total: dict[nn.Parameter, Tensor] = {}
        values: dict[int, float] = {}
        for x, y in zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True):
            share, self.targets = len(x) / len(batch[0]), y
            self._forward(x)
            for k, loss in losses(self).items():
                values[k] = values.get(k, 0.0) + share * loss.item()
                add_gradients(total, Term(loss, self._trained_by(k), share))
        with torch.no_grad():
            before(self)
            for parameter, gradient in total.items():
                self.velocity[parameter] = 0.9 * self.velocity.get(parameter, 0) + gradient
                parameter.sub_(0.05 * self.velocity[parameter])
            after(self)
        return values

    def _trained_by(self, k: int) -> list[nn.Parameter]:
        parameters = (*self.modules[k].parameters(), *self.heads[str(k)].parameters())
        return [parameter for parameter in parameters if parameter.requires_grad]


def compare(
    rule: lp.Rule,
    model: nn.Module,
    batches: Batches,
    to_layers: ToLayers,
    losses: Callable[[Connected], Losses],
    *,
    modules: int = 4,
    parts: int = 1,
    tolerance: float = 1e-9,
    **around: Callable[[Connected], None],
) -> lp.Learner:
    """Train by the learner and by the copy, and compare each step's losses and the final state."""
    untrained = copy.deepcopy(model)
    partition = cut_once(model, batches[0], modules)
    learner = lp.Learner(
        model, rule, partition=partition, optimizer=sgd, sample=batches[0], microbatches=parts
    )
    connected = Connected(learner, to_layers)
    for batch in batches:
        found = learner.step(batch)
        expected = connected.step(batch, losses, parts, **around)
        for loss, k in zip(found, found.rows, strict=True):
            assert loss.item() == pytest.approx(expected[k], abs=tolerance)
    assert_moved(untrained, model)
    assert_same_state(model, connected.model, tolerance)
    assert_same_state(learner.heads, connected.heads, tolerance)
    return learner
