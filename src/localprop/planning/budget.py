"""The way that a learner takes within a budget, and a learner in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from localprop.argument_checks import PRECISIONS
from localprop.checks import choose_partition
from localprop.cost.layer_costs import Network
from localprop.cost.memory import MemoryReading
from localprop.engine.user_optimizers import OptimizerFactory
from localprop.errors import BadInput
from localprop.network.find_layers import layers_of
from localprop.network.partition import Partition
from localprop.network.recomputed import RecomputeChoice
from localprop.planning.candidates import Way
from localprop.planning.plan import Plan
from localprop.planning.search import list_microbatches, search
from localprop.planning.sizes import format_size, read_size
from localprop.ranks.pipeline import Ranks
from localprop.rule.rule import Rule
from localprop.tasks.batch import Batch
from localprop.tasks.task import Task


def find_budget_problems(
    modules: object,
    partition: object,
    recompute: object,
    offload: object,
    microbatches: object,
    optimizer: object,
    ranks: Ranks,
) -> Iterator[str]:
    """What a learner cannot be given beside a budget."""
    chosen = {
        "modules": (modules, None),
        "partition": (partition, None),
        "recompute": (recompute, False),
        "microbatches": (microbatches, 1),
    }
    for name, (value, default) in chosen.items():
        if value is not default and value != default:
            yield f"{name}={value!r}, but budget= chooses it: leave one of them out."
    if offload:
        yield (
            "budget= takes no way with offload=True, since operations do not say how long its "
            "copies take: leave one of them out."
        )
    if isinstance(optimizer, Optimizer):
        yield (
            "budget= needs a factory, optimizer=lambda params: torch.optim.SGD(params, lr=0.1): an "
            "optimizer of all parameters steps at the end, when all gradients are alive."
        )
    if ranks.is_used():
        yield (
            "budget= plans for one process, and these are several ranks: give modules=, "
            "recompute= and microbatches=, as lp.plan(..., ranks=...) says; learner.memory() "
            "predicts each rank's own peak."
        )


class Chosen(NamedTuple):
    """What a plan chose for a learner.

    Attributes:
        plan: of one rule, beside end-to-end training.
        partition: the cuts.
        recompute: as for `Learner`.
        microbatches: as for `Learner`.
        atomic: as for `Learner`.
    """

    plan: Plan
    partition: Partition
    recompute: RecomputeChoice
    microbatches: int
    atomic: bool


def choose_within(
    budget: int | str,
    model: nn.Module,
    rule: Rule,
    sample: Any,
    task: Task,
    batch_dims: Any,
    optimizer: OptimizerFactory | Optimizer,
    precision: str,
    weight_gradients: str,
    atomic: bool | None,
) -> Chosen:
    """Choose the fastest way of a rule that fits.

    Args:
        budget: bytes, or a text such as "8GB".
        model: the network.
        rule: the only one whose ways are taken.
        sample: a batch like the others.
        task: what the network is trained for.
        batch_dims: where a batch holds its samples.
        optimizer: a factory.
        precision: as for `Learner`.
        weight_gradients: as for `Learner`.
        atomic: as for `Learner`; None where the budget has room for it.

    Raises:
        BadInput: the budget is no size, the rule cannot train the network, or nothing fits: with
            the smallest budget and what would lower it.
    """
    assert not isinstance(optimizer, Optimizer)
    limit = read_size(budget)
    layers = layers_of(model, sample, task=task, batch_dims=batch_dims)
    batch = Batch.of(sample, task.targets(sample), batch_dims)
    network = Network(
        model,
        layers,
        task,
        batch,
        optimizer,
        PRECISIONS[precision],
        weight_gradients=weight_gradients,
    )
    counts, notes = list_microbatches(network)
    only = {"the rule": rule}
    found = search(network, only, limit, counts, only=rule, notes=notes, atomic=atomic)
    if not found.front:
        raise BadInput(note.partition(" is left out: ")[2] for note in found.notes[len(notes) :])
    if found.best is None:
        raise BadInput(found.describe())
    partition = choose_partition(layers, rule, task, found.best.modules)
    chosen = found.best.kwargs
    saving = chosen["recompute"], chosen["microbatches"], chosen["atomic"]
    return Chosen(found, partition, *saving)


def summarise(
    memory: MemoryReading,
    batch: Batch,
    plan: Plan | None,
    modules: int,
    arguments: Mapping[str, Any],
) -> str:
    """A learner in one sentence.

    Args:
        memory: its peak.
        batch: what the peak is predicted for.
        plan: what its budget was planned with, or None.
        modules: the number of its modules.
        arguments: its recompute, microbatches, precision and ranks.
    """
    dim = batch.dims[batch.input]
    shape = tuple(size for d, size in enumerate(batch.inputs.shape) if d != dim)
    assumed = f"predicted for {batch.samples} x {shape} in {arguments['precision']}"
    if arguments["ranks"].is_used():
        assumed += ", on this rank"
    peak = f"peak {format_size(memory.peak_bytes)}"
    how = ", ".join(_list_parts(modules, arguments))
    if plan is None or plan.best is None or plan.budget is None:
        return f"{peak} {assumed}: {how}"
    beside = [f"end-to-end {format_size(plan.plain.peak_bytes)}"]
    other = _find_best_end_to_end(plan)
    if other is not None:
        how_else = str(other).removeprefix(f"{other.method}, ")
        beside.append(f"best {how_else} {format_size(other.peak_bytes)} at {other.time:.2f} x")
    return (
        f"{peak} of {format_size(plan.budget)} {assumed} ({', '.join(beside)}): {how}, "
        f"{plan.best.time:.2f} x the time by operations"
    )


def _list_parts(modules: int, arguments: Mapping[str, Any]) -> Iterator[str]:
    yield "1 module" if modules == 1 else f"{modules} modules"
    recompute, parts = arguments["recompute"], arguments["microbatches"]
    if arguments["offload"]:
        yield "offload"
    if recompute:
        yield "recompute" if recompute is True else f"recompute={recompute!r}"
    if parts > 1:
        yield f"{parts} micro-batches"


def _find_best_end_to_end(plan: Plan) -> Way | None:
    """End to end with recompute or micro-batches: the fastest that fits, or else the smallest."""
    ways = [way for way in plan.ways if way.rule == plan.plain.rule and way != plan.plain]
    fitting = [way for way in ways if plan.fits(way)]
    if fitting:
        return min(fitting, key=lambda way: (way.time, way.peak_bytes))
    return min(ways, key=lambda way: way.peak_bytes, default=None)
