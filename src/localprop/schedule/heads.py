"""Build the auxiliary networks, losses and encoders of a rule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from localprop.data.dataset import Normalization
from localprop.errors import check
from localprop.network.partition import Partition
from localprop.rule.attach import AttachPoint
from localprop.rule.builders import running_builder
from localprop.rule.local_loss import LocalLoss
from localprop.rule.losses import TaskLoss
from localprop.rule.positions import build_matching, makes_whole
from localprop.rule.rule import Rule
from localprop.rule.source import Source
from localprop.rule.table import CreditTable
from localprop.schedule import process_wide
from localprop.schedule.randomness import derive_seed
from localprop.tasks.classification import Classification
from localprop.tasks.task import Task


class _ModelOutput(nn.Identity):
    """The last module's auxiliary network: its classifier is part of the primary network."""


def build_heads(
    rule: Rule,
    partition: Partition,
    table: CreditTable,
    task: Task,
    seed: int,
    normalization: Normalization | None,
) -> nn.ModuleDict:
    """The auxiliary network "aux" and the loss "loss" of each loss, by its number.

    Raises:
        BadInput: a builder of the rule returns something else than a module or a loss.
    """
    points = find_points(partition, table, normalization, task)
    return nn.ModuleDict(
        {str(k): build_head(rule, table, k, points[k], seed) for k in table.losses}
    )


def build_head(
    rule: Rule, table: CreditTable, k: int, point: AttachPoint, seed: int
) -> nn.ModuleDict:
    """The auxiliary network "aux" and the loss "loss" of loss number `k`, at its attach point.

    Raises:
        BadInput: a builder of the rule returns something else than a module or a loss.
    """
    is_last = k == len(table.rows) - 1
    # By its own number: a change of other heads does not change these weights.
    with _torch_seeded_by(seed, "head", k):
        with running_builder("aux", rule.aux):
            aux = _ModelOutput() if is_last else build_matching(rule.aux, point)
        with running_builder("loss", rule.loss):
            built = (TaskLoss() if is_last else rule.loss)(point)
        with running_builder("penalty", rule.penalty):
            loss = rule.penalty(point, built)
    check(_find_builder_problems(aux, loss))
    return nn.ModuleDict({"aux": aux, "loss": loss})


def _find_builder_problems(aux: object, loss: object) -> Iterator[str]:
    if not isinstance(aux, nn.Module):
        yield f"The aux builder returned a {type(aux).__name__}, but must return a torch.nn.Module."
    if not isinstance(loss, LocalLoss):
        yield (
            f"The loss builder returned a {type(loss).__name__}, but must return a "
            "localprop.LocalLoss."
        )


def find_points(
    partition: Partition,
    table: CreditTable,
    normalization: Normalization | None,
    task: Task = Classification(),  # noqa: B008 - it is frozen
) -> dict[int, AttachPoint]:
    """The attach point of each loss that trains something, by its number."""
    return {k: _make_point(partition, table, k, normalization, task) for k in table.losses}


def _make_point(
    partition: Partition,
    table: CreditTable,
    k: int,
    normalization: Normalization | None,
    task: Task,
) -> AttachPoint:
    layers, module_of_loss = partition.layers, table.module_of_loss
    module = module_of_loss[k]
    layer = partition.modules[module][-1]
    # Modules that train under the last loss alone ("joined") count as one.
    last_module = len(partition.modules) - 1
    local = [module_of_loss[loss] for loss in table.losses if module_of_loss[loss] < last_module]
    point = AttachPoint(
        module=module,
        modules=max(local, default=-1) + 2,
        layer=layer,
        layers=layers,
        features=layers.shapes[layer],
        # Outputs without a dimension of their own are one number for each sample.
        outputs=layers.output_shape[layers.output_channel] if len(layers.output_shape) > 1 else 1,
        start=partition.modules[module][0],
        objective=module_of_loss[:k].count(module),
        normalization=normalization,
        task=task,
    )
    if module < last_module and makes_whole(point):
        return replace(point, outputs=math.prod(layers.output_shape[1:]))
    return point


def build_encoders(
    rule: Rule, partition: Partition, sources: tuple[tuple[Source, ...], ...], seed: int
) -> nn.ModuleDict:
    """One encoder per source, by the number of the receiving module."""
    layers = partition.layers
    # The input of a module has the shape of the output of the layer before it.
    inputs = [
        layers.input_shape,
        *(layers.shapes[module.start - 1] for module in partition.modules[1:]),
    ]
    encoders = nn.ModuleDict()
    for module, module_sources in enumerate(sources):
        built = nn.ModuleList()
        for source in module_sources:
            with _torch_seeded_by(seed, "encoder", module, source.module, source.raw):
                shapes = inputs[source.module], inputs[module]
                with running_builder("context", rule.context.encoder):
                    built.append(rule.context.encoder(source, *shapes))
        if module_sources:
            encoders[str(module)] = built
    return encoders


@contextmanager
def _torch_seeded_by(*key: object) -> Iterator[None]:
    """Seed torch's CPU generator with a key, and restore the caller's random state afterwards."""
    with process_wide.generators_lock, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*key))
        yield
