"""The segments that one process runs, and the parameters that it does not need."""

from __future__ import annotations

from collections.abc import Iterator
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
        if parameter.is_floating_point():
            parameter.data = parameter.data.new_full((), torch.nan).expand(parameter.shape)


def _list_unused(wiring: Wiring, stage: Stage, model: nn.Module) -> Iterator[nn.Parameter]:
    # A parameter that no segment uses at all is not known to be unused here: it stays.
    used_elsewhere = wiring.parameters_used_by(range(len(wiring.segments)))
    used_elsewhere -= wiring.parameters_used_by(stage.segments)
    for name, parameter in model.named_parameters():
        if name in used_elsewhere:
            yield parameter
    losses = {str(o.loss) for o in wiring.objectives if o.segment in stage.segments}
    for key, head in wiring.heads.items():
        if key not in losses:
            yield from head.parameters()
    starts = [wiring.segments[s] for s in stage.segments if wiring.segments[s].starts_module]
    receivers = {str(segment.module) for segment in starts}
    for key, encoders in wiring.encoders.items():
        if key not in receivers:
            yield from encoders.parameters()
