"""What a learner is given, checked by types and values alone, before anything is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from localprop.arguments import find_mistyped
from localprop.data.dataset import Normalization
from localprop.engine.user_optimizers import find_closure_problems
from localprop.errors import show
from localprop.network.partition import Partition
from localprop.network.recomputed import RecomputeChoice
from localprop.ranks.pipeline import Ranks
from localprop.rule.rule import Rule
from localprop.schedule.check_wiring import FACTORY, find_wiring_problems
from localprop.schedule.sums import WEIGHT_GRADIENTS
from localprop.schedule.wiring import Wiring
from localprop.tasks.task import Task

# The types of those arguments of a learner that need no more than one.
_OTHERS = {
    "recompute": RecomputeChoice,
    "offload": bool,
    "precision": str,
    "fast": bool,
    "on_nonfinite": str,
    "seed": int,
    "normalization": Normalization | None,
    "ranks": Ranks,
}
_MAX_MICROBATCHES = 4096  # a schedule lists the actions of each of them
ON_NONFINITE = ("raise", "skip", "ignore")
PRECISIONS: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def find_argument_problems(given: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a learner's arguments, by name, by their types alone."""
    model, rule, optimizer, task = (given[k] for k in ("model", "rule", "optimizer", "task"))
    modules, partition, budget = (given[k] for k in ("modules", "partition", "budget"))
    precision, ranks = given["precision"], given["ranks"]
    failures = given["on_nonfinite"], given["atomic"]
    yield from find_mistyped("Learner", given, _OTHERS)
    if not isinstance(model, nn.Module):
        yield f"The model is a {_name(model)}, but must be a torch.nn.Module."
    elif not list(model.parameters()):
        yield "The model has no parameters: there is nothing to train."
    else:
        yield from find_parallel_problems(model)
        yield from _find_half_problems(model, precision)
    if not isinstance(rule, Rule):
        yield (
            f"The rule is a {_name(rule)}, but must be a localprop.Rule: call a method, as in "
            "localprop.greedy()."
        )
    if budget is None and (modules is None) == (partition is None):
        yield (
            "Give either modules=K (cut uniformly) or partition=Partition.at(...); or "
            "budget='8GB', which chooses."
        )
    if partition is not None and not isinstance(partition, Partition):
        yield (
            f"partition is a {_name(partition)}, but must be a localprop.Partition: make one with "
            "Partition.at(...)."
        )
    microbatches = given["microbatches"]
    counts = {"modules": 1 if modules is None else modules, "microbatches": microbatches}
    for name, count in counts.items():
        if type(count) is not int:
            yield f"{name}={show(count)} must be a whole number."
    if type(microbatches) is int and microbatches > _MAX_MICROBATCHES:
        yield (
            f"microbatches={show(microbatches)}, but a batch is split into at most "
            f"{_MAX_MICROBATCHES} parts: use fewer."
        )
    if precision not in [*PRECISIONS]:
        yield f"precision={show(precision)} must be one of {', '.join(PRECISIONS)}."
    if given["weight_gradients"] not in WEIGHT_GRADIENTS:
        yield (
            f"weight_gradients={given['weight_gradients']!r} must be 'once' (of the sum of all "
            "flows) or 'each' (by each flow)."
        )
    yield from _find_failure_problems(*failures, precision)
    if isinstance(ranks, Ranks) and ranks.is_used():
        yield from _find_rank_problems(optimizer, precision, *failures)
    if isinstance(optimizer, Optimizer):
        yield from find_closure_problems(optimizer)
    elif not callable(optimizer):
        yield (
            f"optimizer is a {_name(optimizer)}, but must be a function of parameters, or a torch "
            "optimizer."
        )
    if task is not None and not isinstance(task, Task) and not callable(task):
        yield (
            f"task is a {_name(task)}, but must be a task such as localprop.Classification(), or a "
            "loss such as nn.MSELoss()."
        )


def _find_half_problems(model: nn.Module, precision: str) -> Iterator[str]:
    half = [name for name, p in model.named_parameters() if p.dtype is torch.float16]
    if precision == "fp16" and half:
        yield (
            f'precision="fp16" keeps parameters in float32 and casts them in the forward, but '
            f"{half[0]!r} is float16: leave out model.half()."
        )


def _find_failure_problems(on_nonfinite: object, atomic: object, precision: str) -> Iterator[str]:
    """What is wrong with what a learner does about steps that fail."""
    if on_nonfinite not in ON_NONFINITE:
        yield f"on_nonfinite={show(on_nonfinite)} must be one of {', '.join(ON_NONFINITE)}."
    if not isinstance(atomic, bool | None):
        yield f"atomic={show(atomic)} must be True or False, or None."
    if on_nonfinite == "skip" and precision == "fp16":
        yield "on_nonfinite='skip' beside precision='fp16', whose GradScaler skips: leave it out."
    if on_nonfinite == "skip" and atomic is False:
        yield "on_nonfinite='skip' takes a step back, for which it must be atomic: atomic=True."


def _find_rank_problems(
    optimizer: object, precision: str, on_nonfinite: object, atomic: object
) -> Iterator[str]:
    """What cannot be trained on several ranks."""
    if precision == "fp16":
        yield (
            'precision="fp16" trains in one process, since all ranks would have to agree on the '
            'scale of losses after each step: use precision="bf16".'
        )
    if isinstance(optimizer, Optimizer):
        yield (
            f"On several ranks each segment is stepped on its own: give a factory, {FACTORY}, "
            "instead of an optimizer of all parameters; or use each process for itself with "
            "ranks=Ranks(alone=True)."
        )
    if atomic or on_nonfinite == "skip":
        what = "atomic=True" if atomic else "on_nonfinite='skip'"
        yield (
            f"{what} takes a step back, but on several ranks others have stepped by then: leave it "
            "out."
        )


def find_backward_problems(wiring: Wiring, *, on_ranks: bool, unscaled: bool) -> Iterator[str]:
    """Why `learner.backward` cannot leave the gradients of a step to others.

    Args:
        wiring: of the learner.
        on_ranks: whether it trains on several ranks.
        unscaled: whether losses should be scaled, and are not.
    """
    if on_ranks:
        yield (
            "learner.backward runs in one process: on several ranks call learner.step, or use "
            "each process for itself with ranks=Ranks(alone=True)."
        )
    if unscaled:
        yield (
            'With precision="fp16" learner.backward needs losses that are scaled: give '
            "backward=lambda loss: learner.scaler.scale(loss).backward(), and step by "
            "learner.scaler.step(optimizer) and learner.scaler.update()."
        )
    yield from find_wiring_problems(wiring, recompute=False, one_optimizer=True)


# By name, since importing them takes long.
_WRAPPERS = {
    "DistributedDataParallel": "sums a gradient once per step, when the whole backward has run: "
    "modules would be stepped before",
    "FullyShardedDataParallel": "joins and shards parameters: a segment has none of its own",
    "DeepSpeedEngine": "steps all parameters at once: a segment has no step of its own",
}


def find_parallel_problems(model: nn.Module) -> Iterator[str]:
    """What somebody else has made parallel already."""
    advice = "Use the model as it was and ranks=lp.Ranks(replicas=...) for data parallelism."
    for name, module in model.named_modules():
        for kind in (each.__name__ for each in type(module).__mro__):
            if kind in _WRAPPERS:
                where = "The model" if not name else f"The module {name!r}"
                yield f"{where} is in {kind}, which {_WRAPPERS[kind]}. {advice}"
    sharded = [
        name for name, parameter in model.named_parameters() if hasattr(parameter, "placements")
    ]
    if sharded:
        yield (
            f"Parameter {sharded[0]!r} is sharded (a DTensor, as fully_shard makes it), but a "
            f"segment is stepped with whole parameters. {advice}"
        )


def _name(value: object) -> str:
    return type(value).__name__
