"""What a learner is given: checked before anything is built, every problem at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localprop.errors import BadInput, check
from localprop.network.find_layers import layers_of
from localprop.network.partition import Partition
from localprop.rule.local_loss import Batch, LocalLoss
from localprop.rule.rule import Rule
from localprop.schedule.wiring import Wiring

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
BatchLike = Tensor | tuple[Tensor, ...] | list[Tensor]
_FACTORY = "optimizer=lambda params: torch.optim.SGD(params, lr=0.1)"


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
        yield f"The model is a {_name(model)}, but must be a torch.nn.Module."
    elif not list(model.parameters()):
        yield "The model has no parameters: there is nothing to train."
    if not isinstance(rule, Rule):
        yield (
            f"The rule is a {_name(rule)}, but must be a localprop.Rule: call a method, as in "
            "localprop.greedy()."
        )
    if (modules is None) == (partition is None):
        yield "Give either modules=K (cut uniformly) or partition=Partition.at(...)."
    if partition is not None and not isinstance(partition, Partition):
        yield (
            f"partition is a {_name(partition)}, but must be a localprop.Partition: make one with "
            "Partition.at(...)."
        )
    counts = {"modules": 1 if modules is None else modules, "microbatches": microbatches}
    for name, count in counts.items():
        if type(count) is not int:
            yield f"{name}={count!r} must be a whole number."
    if precision not in PRECISIONS:
        yield f"precision={precision!r} must be one of {', '.join(PRECISIONS)}."
    if not isinstance(optimizer, Optimizer) and not callable(optimizer):
        yield (
            f"optimizer is a {_name(optimizer)}, but must be a function of parameters, or a torch "
            "optimizer."
        )
    if not callable(task) or isinstance(task, nn.Module):
        yield (f"task is a {_name(task)}, but must build a loss, as localprop.CrossEntropy() does.")


def find_rank_problems(model: nn.Module, optimizer: object) -> Iterator[str]:
    """What cannot be trained on several ranks."""
    if isinstance(optimizer, Optimizer):
        yield (
            f"On several ranks each segment is stepped on its own: give a factory, {_FACTORY}, "
            "instead of an optimizer of all parameters; or use each process for itself with "
            "ranks=Ranks(alone=True)."
        )
    sharded = [
        name for name, parameter in model.named_parameters() if hasattr(parameter, "placements")
    ]
    if sharded:
        yield (
            f"Parameter {sharded[0]!r} is sharded already (a DTensor, as fully_shard makes it): "
            "stages of a pipeline hold whole parameters. Leave the model as it is and use "
            "ranks=Ranks(replicas=...) for data parallelism."
        )


def make_partition(
    model: nn.Module, sample: list[Tensor], modules: int | None, partition: Partition | None
) -> Partition:
    """The given partition, or a uniform one.

    Args:
        model: the primary network.
        sample: a batch.
        modules: the number of modules, if no partition is given.
        partition: the cuts.

    Raises:
        BadInput: the partition names parameters that the model does not have, or the model cannot
            be cut into so many modules.
    """
    if partition is None:
        assert modules is not None
        return Partition.uniform(layers_of(model, tuple(sample)), modules)
    known = {name for name, _ in model.named_parameters()}
    named = {name for layer in partition.layers.parameters for name in layer}
    strange = sorted(named - known)
    if strange:
        raise BadInput(
            f"The partition is of another model: this one has no parameter {strange[0]!r}. Call "
            "layers_of on this model."
        )
    return partition


def find_wiring_problems(wiring: Wiring, *, recompute: bool, one_optimizer: bool) -> Iterator[str]:
    """What a rule's losses need that the model or the other arguments forbid."""
    segments = range(len(wiring.segments))
    if not any(wiring.flows[s] or wiring.has_second_order_loss(s) for s in segments):
        yield "Every parameter of the model is frozen: there is nothing to train."
    for objective in wiring.objectives:
        if objective.second_order and recompute:
            yield (
                f"recompute=True, but loss {objective.loss} differentiates through its module, "
                "whose graph must stay: use recompute=False, or more modules."
            )
        after_step = [
            each.copy.source
            for each in objective.copies
            if each.copy.lag == 0 and each.source_segment is not None
        ]
        if after_step and one_optimizer:
            yield (
                f"Loss {objective.loss} copies {after_step[0]!r} right after its step, but an "
                f"optimizer of all parameters steps at the end: give a factory, {_FACTORY}, or "
                "copy with lag=1."
            )


class BatchCheck:
    """Lets batches pass that fit the sample, while the model trains what it did at first.

    Args:
        model: the network.
        sample: inputs and targets.
        task: the loss of the last module.
        outputs: the shape of the network's outputs.
    """

    def __init__(
        self, model: nn.Module, sample: tuple[Tensor, Tensor], task: LocalLoss, outputs: torch.Size
    ) -> None:
        self._sample, self._task, self._outputs = sample, task, outputs
        self._parameters = list(model.parameters())
        self._trainable = [parameter.requires_grad for parameter in self._parameters]

    def __call__(self, batch: BatchLike) -> Batch:
        """The batch on the model's device.

        Raises:
            BadInput: something is wrong with it.
        """
        tensors = unpack_batch(batch)
        if [parameter.requires_grad for parameter in self._parameters] != self._trainable:
            raise BadInput(
                "requires_grad of some parameters has changed since the Learner was made: call "
                "learner.rebuild(), or make a new Learner."
            )
        check(find_batch_problems(tensors, self._sample, self._task, self._outputs))
        device = self._parameters[0].device
        return Batch(*[tensor.to(device, non_blocking=True) for tensor in tensors])


def find_batch_problems(
    tensors: list[Tensor], sample: tuple[Tensor, Tensor], task: LocalLoss, outputs: torch.Size
) -> Iterator[str]:
    """What is wrong with a batch.

    Args:
        tensors: the batch.
        sample: inputs and targets that the learner was made for.
        task: the loss of the last module.
        outputs: the shape of the network's outputs.
    """
    if len(tensors) != 2:
        yield f"A batch must be (inputs, targets), but this one has {len(tensors)} part(s)."
        return
    inputs, targets = tensors
    like, like_targets = sample
    if inputs.ndim == 0 or inputs.shape[1:] != like.shape[1:]:
        wanted = ", ".join(["N", *map(str, like.shape[1:])])
        yield f"Inputs have shape {tuple(inputs.shape)}, but the sample was ({wanted})."
    elif len(inputs) == 0:
        yield "The batch is empty."
    if inputs.dtype != like.dtype:
        yield f"Inputs are {inputs.dtype}, but the sample was {like.dtype}: convert one of them."
    if targets.dtype != like_targets.dtype:
        yield (
            f"Targets are {targets.dtype}, but the sample's were {like_targets.dtype}: convert one "
            "of them."
        )
    if targets.shape != (*inputs.shape[:1], *like_targets.shape[1:]):
        wanted = ", ".join(["N", *map(str, like_targets.shape[1:])])
        yield (
            f"{len(inputs)} inputs, but targets of shape {tuple(targets.shape)}: they must be "
            f"({wanted}), one per input."
        )
    elif targets.device.type == "cpu" and targets.numel():
        # On an accelerator a look at the values would wait for it.
        yield from task.find_problems(targets, outputs)


def make_zero_batch(sample: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A batch of zeros in the shape of the sample, which itself is not kept.

    Targets that are probabilities give each class the same.
    """
    inputs, *rest = sample
    targets = rest[0] if rest else torch.empty(len(inputs), dtype=torch.long)
    are_probabilities = targets.is_floating_point() and targets.ndim > 1 and targets.shape[-1]
    share = 1 / targets.shape[-1] if are_probabilities else 0
    return torch.zeros_like(inputs, device="cpu"), torch.full_like(targets, share, device="cpu")


def unpack_batch(batch: object) -> list[Tensor]:
    """The tensors of a batch.

    Raises:
        BadInput: the batch is no tensor and no tuple or list of tensors.
    """
    entries: list[object] = [batch] if isinstance(batch, Tensor) else []
    if isinstance(batch, (tuple, list)):
        entries = list(batch)
    tensors = [entry for entry in entries if isinstance(entry, Tensor) and entry.ndim > 0]
    if not entries or len(tensors) < len(entries):
        strange = [
            "scalars" if isinstance(e, Tensor) else _name(e) for e in entries if not _has_samples(e)
        ]
        seen = ", ".join(strange) or f"{batch!r:.60}"
        raise BadInput(f"A batch must be a tuple of tensors (inputs, targets), not {seen}.")
    return tensors


def _has_samples(entry: object) -> bool:
    return isinstance(entry, Tensor) and entry.ndim > 0


def _name(value: object) -> str:
    return type(value).__name__
