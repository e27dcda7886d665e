"""The part of a step that one process runs, and what it need not hold."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from localprop.step.wiring import Wiring


class Stage(NamedTuple):
    """The part of a step that one process runs.

    Attributes:
        segments: its segments, neighbours in the network.
        replica: which shard of the batch it works on.
        replicas: how many shards there are.
    """

    segments: range
    replica: int = 0
    replicas: int = 1


def release(wiring: Wiring, stage: Stage, model: nn.Module) -> None:
    """Free the parameters that nothing in a stage uses: from now on they are NaN, without memory of their own.

    `model(x)` gives NaN then, and not plausible nonsense.

    Args:
        wiring: its heads and encoders are freed, too.
        stage: the one to keep.
        model: the primary network.
    """
    used, anywhere = wiring.used(stage.segments), wiring.used(range(len(wiring.segments)))
    ends = {str(objective.loss) for objective in wiring.objectives if objective.segment in stage.segments}
    inlets = {str(wiring.segments[s].module) for s in stage.segments if wiring.segments[s].inlet}
    idle = [parameter for name, parameter in model.named_parameters() if name in anywhere - used]
    idle += [p for key, head in wiring.heads.items() if key not in ends for p in head.parameters()]
    idle += [p for key, encoders in wiring.encoders.items() if key not in inlets for p in encoders.parameters()]
    for parameter in idle:
        if parameter.is_floating_point():
            parameter.data = parameter.data.new_full((), torch.nan).expand(parameter.shape)
