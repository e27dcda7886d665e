"""What a learner trains, copied and run as one graph without cuts: L_k trains the layers of module k and its own head."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from reference import ToLayers, assert_moved, assert_same_state, sgd
from torch import Tensor, nn

import localprop as lp

Losses = dict[int, Tensor]


class Connected:
    """Copies of a learner's model and heads.

    Attributes:
        outputs: of a step, the input and then the output of each module.
        inner: of a step, what every module of the network returned, by name.
        targets: of a step.
    """

    def __init__(self, learner: lp.Learner, to_layers: ToLayers) -> None:
        self.model, self.heads = copy.deepcopy(learner.model), copy.deepcopy(learner.heads)
        layers = to_layers(self.model)
        self.modules = [nn.ModuleList(layers[i] for i in own) for own in learner.partition.modules]
        self.outputs: list[Tensor] = []
        self.inner: dict[str, Tensor] = {}
        self.targets = torch.empty(0)
        self.velocity: dict[nn.Parameter, Tensor] = {}
        for path, module in self.model.named_modules():
            if path:
                module.register_forward_hook(lambda m, a, output, path=path: self._note(path, output))

    def aux(self, k: int) -> nn.Module:
        return self.heads[str(k)]["aux"]

    def loss(self, k: int) -> nn.Module:
        return self.heads[str(k)]["loss"]

    def _note(self, path: str, output: Tensor) -> Tensor:
        self.inner[path] = output
        return output.clone()  # some networks write into it

    def _forward(self, x: Tensor) -> None:
        self.outputs = [x]
        for module in self.modules:
            for layer in module:
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
        """SGD with momentum; `before` and `after` run with all gradients known, around the update."""
        total: dict[nn.Parameter, Tensor] = {}
        values: dict[int, float] = {}
        for x, y in zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True):
            share, self.targets = len(x) / len(batch[0]), y
            self._forward(x)
            for k, loss in losses(self).items():
                values[k] = values.get(k, 0.0) + share * loss.item()
                own = (*self.modules[k].parameters(), *self.heads[str(k)].parameters())
                trained = [parameter for parameter in own if parameter.requires_grad]
                found = torch.autograd.grad(loss, trained, retain_graph=True)
                for parameter, gradient in zip(trained, found, strict=True):
                    total[parameter] = total.get(parameter, 0) + share * gradient
        with torch.no_grad():
            before(self)
            for parameter, gradient in total.items():
                self.velocity[parameter] = 0.9 * self.velocity.get(parameter, 0) + gradient
                parameter -= 0.05 * self.velocity[parameter]
            after(self)
        return values


def compare(
    rule: lp.Rule,
    model: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    to_layers: ToLayers,
    losses: Callable[[Connected], Losses],
    *,
    modules: int = 4,
    parts: int = 1,
    tolerance: float = 1e-9,
    **around: Callable[[Connected], None],
) -> lp.Learner:
    """Train by the learner and by the copy; losses of each step, and what is left of model and heads, are the same."""
    untrained = copy.deepcopy(model)
    learner = lp.Learner(model, rule, modules=modules, optimizer=sgd, sample=batches[0], microbatches=parts)
    connected = Connected(learner, to_layers)
    for batch in batches:
        found = learner.step(batch)
        expected = connected.step(batch, losses, parts, **around)
        for loss, k in zip(found, found.numbers, strict=True):
            assert loss.item() == pytest.approx(expected[k], abs=tolerance)
    assert_moved(untrained, model)
    assert_same_state(model, connected.model, tolerance)
    assert_same_state(learner.heads, connected.heads, tolerance)
    return learner
