"""What a rule has built: auxiliary networks, losses and encoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from localprop.errors import BadInput
from localprop.network.partition import Partition
from localprop.rule.auxiliary import Normalised, Site
from localprop.rule.context import Source
from localprop.rule.losses import LocalLoss, LossBuilder
from localprop.rule.rule import Rule
from localprop.rule.table import CreditTable
from localprop.step.random import seed_of


@contextmanager
def _built_at(*place: object) -> Iterator[None]:
    """What is built inside depends on the place alone; the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*place))
        yield


class _OwnOutput(nn.Identity):
    """The last module's auxiliary network: none, its classifier is part of the primary network."""


def heads_of(
    rule: Rule, partition: Partition, table: CreditTable, task: LossBuilder, seed: int, normalised: Normalised | None
) -> nn.ModuleDict:
    """The "aux" and "loss" of each loss, by its number."""
    heads = nn.ModuleDict()
    for k in table.losses:
        site = _site(partition, table, k, normalised)
        with _built_at(seed, "head", k):
            last = k == len(table.rows) - 1
            aux = _OwnOutput() if last else rule.aux(site)
            loss = rule.penalty(site, (task if last else rule.loss)(site))
        if not isinstance(aux, nn.Module):
            raise BadInput([f"The aux builder returned a {type(aux).__name__}, but must return a torch.nn.Module."])
        if not isinstance(loss, LocalLoss):
            raise BadInput(
                [f"The loss builder returned a {type(loss).__name__}, but must return a localprop.LocalLoss."]
            )
        heads[str(k)] = nn.ModuleDict({"aux": aux, "loss": loss})
    return heads


def loss_of(heads: nn.ModuleDict, k: int) -> LocalLoss:
    """The loss of a number."""
    loss = heads[str(k)]["loss"]  # type: ignore[index]
    assert isinstance(loss, LocalLoss)
    return loss


def _site(partition: Partition, table: CreditTable, k: int, normalised: Normalised | None) -> Site:
    module = partition.modules[table.at[k]]
    layer, layers = module[-1], partition.layers
    local = [table.at[loss] for loss in table.losses if table.at[loss] < len(partition.modules) - 1]
    return Site(
        module=table.at[k],
        modules=max(local, default=-1) + 2,
        layer=layer,
        layers=layers,
        features=layers.shapes[layer],
        outputs=layers.output_shape[-1],
        start=module[0],
        objective=sum(table.at[other] == table.at[k] for other in range(k)),
        normalised=normalised,
    )


def encoders_of(rule: Rule, partition: Partition, sources: tuple[tuple[Source, ...], ...], seed: int) -> nn.ModuleDict:
    """An encoder per source; the input of module m has the shape of the output of the layer before."""
    layers = partition.layers
    inputs = [layers.input_shape, *(layers.shapes[module.start - 1] for module in partition.modules[1:])]
    encoders = nn.ModuleDict()
    for module, own in enumerate(sources):
        built = nn.ModuleList()
        for source in own:
            with _built_at(seed, "encoder", module, source.module, source.raw):
                built.append(rule.context.encoder(source, inputs[source.module], inputs[module]))
        if own:
            encoders[str(module)] = built
    return encoders
