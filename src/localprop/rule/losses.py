"""Local losses: what training minimises at a module's end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from localprop.arguments import check_arguments
from localprop.errors import check
from localprop.rule.attach import AttachPoint
from localprop.rule.local_loss import LocalLoss, LossInputs
from localprop.tasks.classification import Classification
from localprop.tasks.task import Task

__all__ = ["CrossEntropy", "NoPenalty", "TaskLoss"]


LossBuilder = Callable[[AttachPoint], LocalLoss]


Penalty = Callable[[AttachPoint, LocalLoss], LocalLoss]


@dataclass(frozen=True)
class NoPenalty:
    """A penalty that adds nothing to a loss.

    Example:
        >>> NoPenalty()
        NoPenalty()
    """

    def __call__(self, point: AttachPoint, loss: LocalLoss) -> LocalLoss:
        return loss


class _TaskLoss(LocalLoss):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        return weigh(self.task.loss(aux(features), _find_batch(inputs)), inputs.task_weight)

    def find_problems(self, inputs: LossInputs, outputs: torch.Size) -> Iterable[str]:
        """Find the problems of the task."""
        return self.task.find_problems(_find_batch(inputs), outputs)


def _find_batch(inputs: LossInputs) -> Any:
    """The batch; for whoever calls a loss with inputs and targets alone, made of those."""
    return (inputs.network_input, inputs.targets) if inputs.batch is None else inputs.batch


def weigh(loss: Tensor, weight: Tensor | float) -> Tensor:
    """Multiply a loss by a weight. A weight of 0 gives 0, also where the loss has no labels."""
    if isinstance(weight, Tensor):
        return torch.where(weight > 0, loss * weight.to(loss.dtype), 0.0)
    if weight == 1:
        return loss
    return loss * weight if weight > 0 else torch.nan_to_num(loss) * 0


@dataclass(frozen=True)
class BuiltTask(Task):
    """A task whose loss is a builder's, as the parts of a rule are.

    Attributes:
        build: builds it.
    """

    build: LossBuilder


@dataclass(frozen=True)
class TaskLoss:
    """The task's own loss, of the auxiliary network's outputs.

    Example:
        >>> lp.Terms((lp.Term(lp.TaskLoss(), 0.5),))
        Terms(terms=(Term(loss=TaskLoss(), first=0.5, last=None),))
    """

    def __call__(self, point: AttachPoint) -> LocalLoss:
        task = point.task
        return _Weighed(task.build(point)) if isinstance(task, BuiltTask) else _TaskLoss(task)


@check_arguments
@dataclass(frozen=True)
class CrossEntropy:
    """The cross-entropy of the auxiliary network's outputs with the targets.

    As `Classification`: outputs (N, classes) go with classes (N,) as int64 or with probabilities
    (N, classes), which are 0 or more and have a sum of 1; outputs with positions with a class for
    each.

    Attributes:
        label_smoothing: the share of the target that is spread over all classes.

    Raises:
        BadInput: `label_smoothing` is outside [0, 1).

    Example:
        >>> CrossEntropy(label_smoothing=0.1)
        CrossEntropy(label_smoothing=0.1)
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        inside = 0 <= self.label_smoothing < 1
        check([] if inside else [f"label_smoothing={self.label_smoothing} must lie in [0, 1)."])

    def __call__(self, point: AttachPoint) -> LocalLoss:
        return _TaskLoss(Classification(self.label_smoothing, dim=point.layers.output_channel))


class PenalizedLoss(LocalLoss):
    """A loss plus a penalty. It asks for everything that the loss itself asks for.

    Attributes:
        base: the loss without the penalty.
    """

    def __init__(self, base: LocalLoss) -> None:
        super().__init__()
        self.base = base
        self.module_input = base.module_input
        self.taps = base.taps
        self.second_order = base.second_order
        self.uses_aux = base.uses_aux

    def find_problems(self, inputs: LossInputs, outputs: torch.Size) -> Iterable[str]:
        """Find the problems of the loss itself."""
        return self.base.find_problems(inputs, outputs)


class _Weighed(PenalizedLoss):
    """A task's loss that somebody has built as a local loss, weighted like a task's."""

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        # Once: parts of the loss may be losses of a task's own.
        loss = self.base(features, aux, inputs._replace(task_weight=1.0))
        return weigh(loss, inputs.task_weight)


def find_label_problems(loss: str, point: AttachPoint) -> Iterator[str]:
    """Find out whether a loss that compares samples is used on a network with a label per position.

    Args:
        loss: the class of the loss, as the user writes it.
        point: where the loss is attached.
    """
    if len(point.layers.output_shape) > 2:
        yield (
            f"{loss} compares samples that have one label each, but the network's outputs are "
            f"{tuple(point.layers.output_shape)}: use another loss, such as loss=TaskLoss()."
        )
