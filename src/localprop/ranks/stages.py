"""What a learner does with a pipeline: join it, predict by it, gather what it has trained."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from localprop.engine.engine import Engine
from localprop.engine.optimizers import Optimizers
from localprop.errors import BadInput
from localprop.network.contextual import add_contexts
from localprop.network.find_layers import look_again
from localprop.network.partial_forward import find_isolation_problems
from localprop.network.partition import Partition
from localprop.ranks.agreement import Fact
from localprop.ranks.pipeline import Pipeline, Ranks, load_tensors
from localprop.schedule.stage import release_parameters
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch


def join_pipeline(
    ranks: Ranks,
    wiring: Wiring,
    microbatches: int,
    model: nn.Module,
    sample: Batch,
    facts: Iterable[Fact],
    problems: Iterable[str],
) -> Pipeline:
    """Make this process's stage; it keeps only its own parameters.

    Args:
        ranks: the processes.
        wiring: of the whole network.
        microbatches: of each replica.
        model: the network.
        sample: a batch like the others.
        facts: what must be equal on all ranks.
        problems: what this rank has found wrong before.

    Raises:
        BadInput: the ranks do not fit the method or the network, or each other.
    """
    modules = {"model": model, "heads": wiring.heads, "encoders": wiring.encoders}
    device = next(model.parameters()).device
    pipeline = Pipeline(
        ranks,
        wiring,
        microbatches,
        device,
        trained_modules=modules,
        facts=facts,
        problems=problems,
    )
    with pipeline.reports.reporting():
        own = wiring.layers_in(pipeline.stage.segments)
        pipeline.check_on_all(
            find_isolation_problems(model, wiring.layers, own, wiring.task.forward, sample)
        )
    release_parameters(wiring, pipeline.stage, model)
    return pipeline


def predict_on_ranks(
    pipeline: Pipeline,
    model: nn.Module,
    wiring: Wiring,
    batch: Batch,
    *,
    number: int,
    module: int | None,
) -> Tensor:
    """The deployed network's outputs, on all ranks.

    Args:
        pipeline: that all ranks take part in.
        model: the primary network, of which each rank runs its stage.
        wiring: of the learner.
        batch: on the device of the model.
        number: of the step, for random draws.
        module: must be None, since ranks have no early exits.

    Raises:
        BadInput: a module is given.
    """
    if module is not None:
        raise BadInput(
            f"module={module}: on several ranks the network has no early exits; load the "
            "checkpoint in one process."
        )
    look_again(wiring.layers, wiring.task.forward, batch)
    # An engine that only runs forwards.
    predictor = Engine(
        model,
        replace(wiring, flows=((),) * len(wiring.segments)),
        pipeline.prediction_schedule,
        Optimizers({}),
        device=batch.inputs.device,
        stage=pipeline.stage._replace(replica=0, replicas=1),
        communicator=pipeline.transport,
    )
    return pipeline.broadcast_output(predictor.predict(batch, number=number))


def gather_network(
    pipeline: Pipeline, model: nn.Module, wiring: Wiring, partition: Partition, device: torch.device
) -> nn.Module | None:
    """A copy of the whole trained network on rank 0; None on others."""
    state = pipeline.gather_tensors({"model": model, "encoders": wiring.encoders})
    if state is None:
        return None
    model, encoders = deepcopy((model, wiring.encoders))
    load_tensors({"model": model, "encoders": encoders}, state, device)
    return add_contexts(model, encoders, partition, wiring.sources)
