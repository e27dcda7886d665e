"""The engine of this process: all of a step, or a stage of a pipeline."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from localprop.engine.engine import Engine
from localprop.engine.offload import make_host
from localprop.engine.optimizers import Optimizers
from localprop.engine.user_optimizers import (
    OptimizerFactory,
    find_owned_parameters,
    make_optimizers,
)
from localprop.network.recomputed import RecomputeChoice, choose_recomputed
from localprop.ranks.pipeline import Pipeline, Ranks
from localprop.ranks.stages import join_pipeline
from localprop.schedule.schedule import Schedule
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch


class OwnEngine(NamedTuple):
    """What this process runs.

    Attributes:
        engine: with optimizers, at the start.
        pipeline: None in one process.
    """

    engine: Engine
    pipeline: Pipeline | None


def make_own_engine(
    model: nn.Module,
    wiring: Wiring,
    sample: Batch,
    optimizer: OptimizerFactory | Optimizer,
    *,
    recompute: RecomputeChoice,
    offload: bool,
    microbatches: int,
    autocast: torch.dtype | None,
    seed: int,
    ranks: Ranks,
) -> OwnEngine:
    """Make the engine of a wiring, or of this rank's stage of it.

    Args:
        model: the network.
        wiring: of the whole network.
        sample: a batch like the others.
        optimizer: a factory, or an optimizer that its owner steps.
        recompute: which layers run again.
        offload: whether the host keeps what forwards save.
        microbatches: of each replica.
        autocast: the dtype of forwards and losses, or None.
        seed: of every random draw of a step.
        ranks: the processes.

    Raises:
        BadInput: the ranks cannot share the network, or differ in what they were given; or the
            optimizers are none of these parameters.
    """
    pipeline, stage = None, None
    if ranks.is_used():
        pipeline = join_pipeline(ranks, wiring, microbatches, model, sample, seed)
        schedule, stage = pipeline.schedule, pipeline.stage
    else:  # one process runs the replicas' shares as micro-batches
        schedule = Schedule.compile(wiring, microbatches * ranks.replicas)
    device = next(model.parameters()).device
    owned = find_owned_parameters(model, wiring, stage.segments if stage else None)
    scaler = GradScaler(device.type, enabled=autocast is torch.float16)
    engine = Engine(
        model,
        wiring,
        schedule,
        Optimizers(make_optimizers(optimizer, owned), scaler),
        device=device,
        autocast=autocast,
        seed=seed,
        stage=stage,
        communicator=pipeline.transport if pipeline else None,
        recomputed=choose_recomputed(wiring.layers, recompute),
        host=make_host(device) if offload else None,
    )
    engine.initialise_copies()
    return OwnEngine(engine, pipeline)
