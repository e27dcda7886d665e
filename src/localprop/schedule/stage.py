"""The segments that one process runs, and the parameters that it does not need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from localprop.schedule.wiring import Wiring


class Stage(NamedTuple):
    """The segments and the shard of the batch that one process runs.

    Attributes:
        segments: consecutive segments of the network.
        replica: the shard of the batch.
        replicas: the number of shards.
    """

    segments: range
    replica: int = 0
    replicas: int = 1


def release_parameters(wiring: Wiring, stage: Stage, model: nn.Module) -> None:
    """Free the memory of all parameters that a stage does not use.

    They become NaN with the same shape, but one element of storage. A call of the whole model in
    this process then returns NaN, instead of plausible numbers from untrained weights.

    Args:
        wiring: segments, heads and encoders; heads and encoders of other stages are freed, too.
        stage: the stage to keep.
        model: the primary network.
    """
    for parameter in _list_unused(wiring, stage, model):
        parameter.data = parameter.data.new_full((), torch.nan).expand(parameter.shape)


@contextmanager
def released(wiring: Wiring, stage: Stage, model: nn.Module) -> Iterator[None]:
    """Within the context, parameters are as `release_parameters` leaves them."""
    kept = [(parameter, parameter.data) for parameter in _list_unused(wiring, stage, model)]
    try:
        release_parameters(wiring, stage, model)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def list_idle(wiring: Wiring, stage: Stage, model: nn.Module) -> list[nn.Module]:
    """The modules that a stage does not run: those within other layers, with all inside them, and
    heads and encoders of others. Those with a parameter that the stage uses are left out.
    """
    names = wiring.parameters_used_by(stage.segments)
    used = {parameter for name, parameter in model.named_parameters() if name in names}
    here = wiring.layers_in(stage.segments)
    elsewhere = [
        each for i, own in enumerate(wiring.layers.submodules) if i not in here for each in own
    ]
    modules = [model.get_submodule(submodule.name) for submodule in elsewhere]
    idle = [module for module in modules if used.isdisjoint(module.parameters())]
    return [*idle, *_list_idle_heads(wiring, stage)]


def _list_unused(wiring: Wiring, stage: Stage, model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that only other stages use, but for whole numbers, which have no NaN."""
    # A parameter that no segment uses at all is not known to be unused here: it stays.
    used_elsewhere = wiring.parameters_used_by(range(len(wiring.segments)))
    used_elsewhere -= wiring.parameters_used_by(stage.segments)
    for name, parameter in model.named_parameters():
        if name in used_elsewhere and parameter.is_floating_point():
            yield parameter
    for module in _list_idle_heads(wiring, stage):
        yield from (each for each in module.parameters() if each.is_floating_point())


def _list_idle_heads(wiring: Wiring, stage: Stage) -> Iterator[nn.Module]:
    """The heads and encoders of other stages."""
    losses = {str(o.loss) for o in wiring.objectives if o.segment in stage.segments}
    yield from (head for key, head in wiring.heads.items() if key not in losses)
    starts = [wiring.segments[s] for s in stage.segments if wiring.segments[s].starts_module]
    receivers = {str(segment.module) for segment in starts}
    yield from (each for key, each in wiring.encoders.items() if key not in receivers)
