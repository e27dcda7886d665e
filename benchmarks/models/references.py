"""Gradients of a learner's losses, by plain forwards of its network.

Nothing is cut, detached or replaced. Hooks keep what modules return, and seed random draws where a
step seeds them. One forward serves all losses: each is differentiated with respect to the
parameters that its row of the credit table trains. A parameter of several layers gets what each of
its uses adds: the difference of two gradients, whose forwards record a graph from the beginning and
from the end of these layers.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from cases import Case
from layer_ends import watch_end
from torch import Tensor, nn

from localprop import Layers, Learner, LossInputs
from localprop.network.outputs import list_tensors
from localprop.schedule.randomness import derive_seed
from localprop.tasks.batch import Batch

Gradients = dict[str, Tensor]
T = TypeVar("T")


def copy_all(these: T, *modules: nn.Module) -> T:
    """A deep copy, which shares what cannot be copied: locks, and weights that are computed."""
    try:
        return copy.deepcopy(these)
    except Exception:
        shared: dict[int, Any] = {}
        for module in {each for model in modules for each in model.modules()}:
            for value in vars(module).values():
                if not _can_be_copied(value):
                    shared[id(value)] = value
        return copy.deepcopy(these, shared)


def _can_be_copied(value: Any) -> bool:
    if isinstance(value, dict) and any(isinstance(each, nn.Module) for each in value.values()):
        return True  # the modules below are asked one by one
    try:
        copy.deepcopy(value)
    except Exception:
        return False
    return True


def seed_all(seed: int = 0) -> None:
    """Seed the random generators that a forward may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def seed_like_a_step(learner: Learner, model: nn.Module, number: int = 0) -> list[Any]:
    """Seed the forward of a copy where a step seeds its segments. Returns the hooks' handles."""
    handles = []
    for segment, _ in enumerate(learner.wiring.segments[:-1]):
        seed = derive_seed(learner.seed, number, "F", segment + 1, 0)
        name = learner.wiring.end_name(segment)
        handles.append(watch_end(model, name, partial(_seed_torch, seed)))
    seed_all()
    torch.manual_seed(derive_seed(learner.seed, number, "F", 0, 0))
    return handles


def _seed_torch(seed: int, output: object) -> None:
    torch.manual_seed(seed)


def find_features(layers: Layers, layer: int, output: Any) -> Tensor:
    """The tensor that a layer hands on, among those that its last module returns."""
    return list_tensors(output)[layers.handed_on[layer][0].positions[0]]


class Reference:
    """The gradients of a learner's losses on a batch.

    Args:
        learner: before its first step.
        batch: as a loader yields it.
    """

    def __init__(self, learner: Learner, batch: Any) -> None:
        self.learner = learner
        self.wiring, self.layers = learner.wiring, learner.partition.layers
        task = self.wiring.task
        self.batch = Batch.of(batch, task.targets(batch), learner._arguments["batch_dims"])
        self.untouched = copy_all((learner.network, learner.model, learner.heads), learner.network)

    def compute(self) -> Gradients:
        """The gradients of all parameters, by their names in the learner."""
        total: Gradients = {}
        tied = self._find_tied()
        forward = _Forward(self, 0)
        for k, row in enumerate(self.wiring.table.rows):
            if not any(row):
                continue
            loss = forward.compute_loss(k)
            weights = {
                name: entry.weight
                for layer, entry in enumerate(row)
                if entry is not None and entry.train
                for name in self.layers.parameters[layer]
                if name not in tied and name not in self.layers.frozen
            }
            module = self.wiring.table.module_of_loss[k]
            outside = (f"heads.{k}.", f"encoders.{module}.")
            weights |= {name: 1.0 for name in forward.named if name.startswith(outside)}
            _differentiate(loss, forward.named, weights, total)
        if tied:
            self._add_tied(tied, total)
        return total

    def _find_tied(self) -> set[str]:
        names = [name for names in self.layers.parameters for name in names]
        return {name for name in names if names.count(name) > 1} - self.layers.frozen

    def _add_tied(self, tied: set[str], total: Gradients) -> None:
        forwards: dict[int, _Forward] = {}
        for k, row in enumerate(self.wiring.table.rows):
            for first, end, weight in _find_runs(row):
                for layer, sign in ((first, 1.0), (end, -1.0)):
                    if layer >= len(self.layers):  # nothing comes after
                        continue
                    if layer not in forwards:
                        forwards[layer] = _Forward(self, layer)
                    forward = forwards[layer]
                    loss = forward.compute_loss(k)
                    if loss.requires_grad:
                        weights = dict.fromkeys(sorted(tied), sign * weight)
                        _differentiate(loss, forward.named, weights, total)


def _find_runs(row: Any) -> Iterator[tuple[int, int, float]]:
    """The layers that a loss trains with one weight: the first, the end, and the weight."""
    places = enumerate(row)
    for entry, run in groupby(places, key=lambda place: place[1]):
        layers = [layer for layer, _ in run]
        if entry is not None and entry.train:
            yield layers[0], layers[-1] + 1, entry.weight


def _differentiate(
    loss: Tensor, named: dict[str, Tensor], weights: dict[str, float], total: Gradients
) -> None:
    names = [name for name in weights if named[name].requires_grad]
    if not names or not loss.requires_grad:
        return
    gradients = torch.autograd.grad(
        loss, [named[name] for name in names], allow_unused=True, retain_graph=True
    )
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is not None:
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            weighted = weights[name] * gradient
            total[name] = total[name] + weighted if name in total else weighted


class _Forward:
    """One plain forward of a fresh copy, whose graph begins at a layer."""

    def __init__(self, reference: Reference, first: int) -> None:
        network, model, self._heads = copy_all(reference.untouched, reference.untouched[0])
        self._reference = reference
        self.named: dict[str, Tensor] = dict(model.named_parameters())
        self.named |= dict(self._heads.named_parameters("heads"))
        if network is not model:  # it has encoders
            self.named |= dict(network.named_parameters())
        self._features: dict[int, Tensor] = {}
        self._autocasts: dict[int, bool] = {}  # a head runs where its features are returned
        layers, wiring = reference.layers, reference.wiring
        if 0 < first < len(layers):
            watch_end(model, layers.names[first - 1], lambda _: torch.set_grad_enabled(True))
        for number, own in enumerate(reference.learner.partition.modules[:-1]):
            self._keep(model, number, own[-1])
        seed_like_a_step(reference.learner, model)
        batch = reference.batch.map(torch.clone)
        with torch.set_grad_enabled(first == 0):
            self._output = wiring.task.forward(network, batch.data)
        self._inputs = LossInputs(batch.inputs, batch.targets, batch=batch.data)

    def _keep(self, model: nn.Module, module: int, layer: int) -> None:
        layers = self._reference.layers

        def look(output: Any) -> None:
            # Cloned, since some models write into it later.
            self._features[module] = find_features(layers, layer, output).clone()
            self._autocasts[module] = torch.is_autocast_enabled("cpu")

        watch_end(model, layers.names[layer], look)

    def compute_loss(self, k: int) -> Tensor:
        """Loss k: its auxiliary network on what its module returned."""
        reference = self._reference
        module = reference.wiring.table.module_of_loss[k]
        is_last = module == len(reference.learner.partition.modules) - 1
        features = self._output if is_last else self._features[module]
        objective = next(o for o in reference.wiring.objectives if o.loss == k)
        torch.manual_seed(derive_seed(reference.learner.seed, 0, *objective.seed_key, 0))
        head: Any = self._heads[str(k)]
        autocast = torch.autocast("cpu", enabled=self._autocasts.get(module, False))
        with torch.enable_grad(), autocast:
            loss: Tensor = head["loss"](features, head["aux"], self._inputs)
        return loss


def compare_gradients(learner: Learner, expected: Gradients) -> tuple[float, str, list[str]]:
    """The largest difference of a parameter's gradient, relative to the gradient's largest entry.

    Returns:
        The difference, the name of its parameter, and the names of those that only one side trains.
    """
    largest = max((float(g.abs().max()) for g in expected.values() if g.numel()), default=0.0)
    worst, where, one_sided = 0.0, "", []
    for name, parameter in learner.named_parameters():
        found, wanted = parameter.grad, expected.get(name)
        if found is not None and found.is_sparse:
            found = found.to_dense()
        if found is None or wanted is None:
            other = found if wanted is None else wanted
            if other is not None and other.any():
                one_sided.append(name)
            continue
        # Some gradients are 0 but for rounding: the biases of attention's keys.
        floor = float(wanted.abs().max()) + 1e-4 * largest if wanted.numel() else 0.0
        error = float((found - wanted).abs().max()) / floor if floor else 0.0
        if not error <= worst:
            worst, where = error, name
    return worst, where, one_sided


def compute_loss(case: Case, learner: Learner, model: nn.Module) -> Tensor:
    """The model's own loss, or the task's."""
    if case.own_loss is not None:
        return case.own_loss(model, case.batch)
    task = learner.wiring.task
    return task.loss(task.forward(model, case.batch), case.batch)
