"""What a learner is given: checked before anything is built, every problem at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localprop.errors import BadInput
from localprop.network.partition import Partition
from localprop.rule.losses import LocalLoss
from localprop.rule.rule import Rule
from localprop.schedule.wiring import Wiring

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


def find_argument_problems(
    model: object,
    rule: object,
    modules: object,
    partition: object,
    precision: str,
    optimizer: object,
    microbatches: object,
    task: object,
) -> Iterator[str]:
    """What is wrong with a learner's arguments by their types alone."""
    if not isinstance(model, nn.Module):
        yield f"The model is a {type(model).__name__}, but must be a torch.nn.Module."
    elif not list(model.parameters()):
        yield "The model has no parameters: there is nothing to train."
    if not isinstance(rule, Rule):
        yield f"The rule is a {type(rule).__name__}, but must be a localprop.Rule: call a method, as in localprop.greedy()."
    if (modules is None) == (partition is None):
        yield "Give either modules=K (cut uniformly) or partition=Partition.at(...)."
    if partition is not None and not isinstance(partition, Partition):
        yield f"partition is a {type(partition).__name__}, but must be a localprop.Partition, as of Partition.at(...)."
    for name, count in (
        ("modules", 1 if modules is None else modules),
        ("microbatches", microbatches),
    ):
        if type(count) is not int:
            yield f"{name}={count!r} must be a whole number."
    if precision not in PRECISIONS:
        yield f"precision={precision!r} must be one of {', '.join(PRECISIONS)}."
    if not isinstance(optimizer, Optimizer) and not callable(optimizer):
        yield f"optimizer is a {type(optimizer).__name__}, but must be a function of parameters, or a torch optimizer."
    if not callable(task) or isinstance(task, nn.Module):
        yield f"task is a {type(task).__name__}, but must build a loss, as localprop.CrossEntropy() does."


def find_rank_problems(model: nn.Module, optimizer: object) -> Iterator[str]:
    """What cannot be trained on several ranks."""
    if isinstance(optimizer, Optimizer):
        yield (
            "On several ranks each segment is stepped on its own: give a factory, "
            "optimizer=lambda params: torch.optim.SGD(params, lr=0.1), instead of an optimizer of all parameters; or use each "
            "process for itself with ranks=Ranks(alone=True)."
        )
    sharded = [
        name for name, parameter in model.named_parameters() if hasattr(parameter, "placements")
    ]
    if sharded:
        yield (
            f"Parameter {sharded[0]!r} is sharded already (a DTensor, as fully_shard makes it): stages of a pipeline hold whole "
            "parameters. Leave the model as it is and use ranks=Ranks(replicas=...) for data parallelism."
        )


def find_wiring_problems(wiring: Wiring, *, recompute: bool, one_optimizer: bool) -> Iterator[str]:
    """What a rule's losses need that the other arguments forbid."""
    for objective in wiring.objectives:
        if objective.second_order and recompute:
            yield (
                f"recompute=True, but loss {objective.loss} differentiates through its module, whose graph must stay: use "
                "recompute=False, or more modules."
            )
        late = [
            loan.borrow.source
            for loan in objective.copies
            if loan.borrow.lag == 0 and loan.source_segment is not None
        ]
        if late and one_optimizer:
            yield (
                f"Loss {objective.loss} borrows {late[0]!r} right after its step, but an optimizer of all parameters steps at "
                "the end: give a factory, optimizer=lambda params: torch.optim.SGD(params, lr=0.1), or borrow with lag=1."
            )


def find_batch_problems(
    tensors: list[Tensor], sample: tuple[Tensor, Tensor], task: LocalLoss, outputs: torch.Size
) -> Iterator[str]:
    """What is wrong with a batch, for a network of such outputs that was made for such a sample."""
    if len(tensors) != 2:
        yield f"A batch must be (inputs, targets), but this one has {len(tensors)} part(s)."
        return
    inputs, targets = tensors
    like, like_targets = sample
    if inputs.ndim == 0 or inputs.shape[1:] != like.shape[1:]:
        yield f"Inputs have shape {tuple(inputs.shape)}, but the sample was (N, {join_words(like.shape[1:])})."
    elif len(inputs) == 0:
        yield "The batch is empty."
    if inputs.dtype != like.dtype:
        yield f"Inputs are {inputs.dtype}, but the sample was {like.dtype}: convert one of them."
    if targets.dtype != like_targets.dtype:
        yield f"Targets are {targets.dtype}, but the sample's were {like_targets.dtype}: convert one of them."
    if targets.shape != (*inputs.shape[:1], *like_targets.shape[1:]):
        wanted = ", ".join(["N", *map(str, like_targets.shape[1:])])
        yield f"{len(inputs)} inputs, but targets of shape {tuple(targets.shape)}: they must be ({wanted}), one per input."
    elif (
        targets.device.type == "cpu" and targets.numel()
    ):  # elsewhere a look at the values would wait for the device
        yield from task.find_problems(targets, outputs)


def make_zero_batch(sample: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A batch of zeros in the shape of the sample, which itself is not kept; probabilities are alike for all classes."""
    inputs, *rest = sample
    targets = rest[0] if rest else torch.empty(len(inputs), dtype=torch.long)
    share = (
        1 / targets.shape[-1]
        if targets.is_floating_point() and targets.ndim > 1 and targets.shape[-1]
        else 0
    )
    return torch.zeros_like(inputs, device="cpu"), torch.full_like(targets, share, device="cpu")


def _is_odd(part: object) -> bool:
    return not isinstance(part, Tensor) or part.ndim == 0


def unpack_batch(batch: object) -> list[Tensor]:
    """The tensors of a batch; BadInput for anything else."""
    parts = (
        [batch]
        if isinstance(batch, Tensor)
        else list(batch)
        if isinstance(batch, (tuple, list))
        else []
    )
    odd = [
        type(part).__name__ if not isinstance(part, Tensor) else "scalars"
        for part in parts
        if _is_odd(part)
    ]
    if odd or not parts:
        seen = ", ".join(odd) or f"{batch!r:.60}"
        raise BadInput([f"A batch must be a tuple of tensors (inputs, targets), not {seen}."])
    return [part for part in parts if isinstance(part, Tensor)]


def join_words(sizes: Iterable[object]) -> str:
    """A list in words."""
    return ", ".join(map(str, sizes))
