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
from localprop.errors import check, collect_problems
from localprop.network.recomputed import RecomputeChoice, choose_recomputed
from localprop.ranks.agreement import list_facts_of_training
from localprop.ranks.ending import finish_when_dropped
from localprop.ranks.pipeline import Pipeline, Ranks
from localprop.ranks.stages import join_pipeline
from localprop.rule.rule import Rule
from localprop.schedule.schedule import Action, Schedule
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
    rule: Rule,
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
    checks_numbers: bool = False,
) -> OwnEngine:
    """Make the engine of a wiring, or of this rank's stage of it.

    Args:
        model: the network.
        rule: the training rule.
        wiring: of the whole network.
        sample: a batch like the others.
        optimizer: a factory, or an optimizer that its owner steps.
        recompute: which layers run again.
        offload: whether the host keeps what forwards save.
        microbatches: of each replica.
        autocast: the dtype of forwards and losses, or None.
        seed: of every random draw of a step.
        ranks: the processes.
        checks_numbers: whether a step looks for NaN and infinity before parameters change.

    Raises:
        BadInput: the ranks cannot share the network, or differ in what they were given; or the
            optimizers are none of these parameters.
    """
    pipeline, stage = None, None
    problems: list[str] = []
    optimizers: dict[Action, Optimizer] = {}
    with collect_problems(problems):  # on several ranks, all of them must hear of it
        optimizers = make_optimizers(optimizer, find_owned_parameters(model, wiring))
    if ranks.is_used():
        # Those of other ranks are compared, and then dropped.
        facts = list_facts_of_training(model, rule, sample, optimizers, autocast, seed)
        pipeline = join_pipeline(ranks, wiring, microbatches, model, sample, facts, problems)
        schedule, stage = pipeline.schedule, pipeline.stage
        own = find_owned_parameters(model, wiring, stage.segments)
        optimizers = {step: optimizers[step] for step in own}
    else:  # one process runs the replicas' shares as micro-batches
        check(problems)
        schedule = Schedule.compile(wiring, microbatches * ranks.replicas)
    device = next(model.parameters()).device
    scaler = GradScaler(device.type, enabled=autocast is torch.float16)
    engine = Engine(
        model,
        wiring,
        schedule,
        Optimizers(optimizers, scaler),
        device=device,
        autocast=autocast,
        seed=seed,
        stage=stage,
        communicator=pipeline.transport if pipeline else None,
        recomputed=choose_recomputed(wiring.layers, recompute),
        host=make_host(device) if offload else None,
        checks_numbers=checks_numbers,
    )
    engine.initialise_copies()
    if pipeline:
        finish_when_dropped(pipeline, engine)
    return OwnEngine(engine, pipeline)
