"""Tasks with one target for each output: several classes per sample, and numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.tasks.class_weights import find_weight_problems, list_weights
from localprop.tasks.task import Task, require_targets

__all__ = ["MultiLabel", "Regression"]


class Elementwise(Task):
    """A mean over elements. A batch weighs as many as its targets has.

    Outputs and targets have one shape. Where it differs by a last dimension of 1, as (N, 1) from
    (N,), it does not matter: torch would compare each with each.
    """

    has_fixed_outputs: ClassVar[bool] = True

    def compare(self, output: Tensor, targets: Tensor) -> Tensor:
        """The loss of outputs with targets of their shape."""
        raise NotImplementedError

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        targets = require_targets(self, batch)
        check(_find_shape_problems(output.shape, targets.shape))
        return self.compare(output, targets.to(output.dtype).reshape(output.shape))

    def weight(self, batch: Any) -> float:
        return require_targets(self, batch).numel()

    def find_problems(self, batch: Any, outputs: torch.Size) -> Iterator[str]:
        try:
            targets = require_targets(self, batch)
        except BadInput as error:
            yield from error.problems
            return
        yield from _find_shape_problems(outputs, targets.shape)
        if targets.device.type == "cpu":
            yield from self.find_value_problems(targets)

    def find_value_problems(self, targets: Tensor) -> Iterator[str]:
        """Find out what is wrong with the values of targets."""
        yield from ()


def _find_shape_problems(outputs: torch.Size, targets: torch.Size) -> Iterator[str]:
    if targets not in (outputs, (*outputs, 1)) and outputs != (*targets, 1):
        yield (
            f"Targets have shape {tuple(targets)}, but outputs {tuple(outputs)} need one target "
            "for each: give both the same shape."
        )


@dataclass(frozen=True)
class Regression(Elementwise):
    """The mean squared error: outputs (N, ...) with numbers (N, ...).

    Outputs (N, 1) go with targets (N,), too.

    Example:
        >>> Regression().loss(torch.zeros(2, 1), (None, torch.tensor([1, 3])))
        tensor(5.)
    """

    def compare(self, output: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(output, targets)


@check_arguments
@dataclass(frozen=True)
class MultiLabel(Elementwise):
    """Several classes per sample, or one yes or no: binary cross-entropy of outputs (N, C).

    Targets (N, C) are 0, 1 or probabilities between. Outputs (N, 1) go with targets (N,), too.

    Attributes:
        pos_weight: how much a target of 1 counts, one number for each class.

    Raises:
        BadInput: `pos_weight` holds something else than numbers from 0.

    Example:
        >>> MultiLabel().loss(torch.zeros(2, 3), (None, torch.ones(2, 3)))
        tensor(0.6931)
    """

    pos_weight: Sequence[float] | Tensor | None = None

    def __post_init__(self) -> None:
        if self.pos_weight is not None:
            weights = list_weights("pos_weight", self.pos_weight)
            object.__setattr__(self, "pos_weight", weights)
            check(find_weight_problems("pos_weight", weights))

    def compare(self, output: Tensor, targets: Tensor) -> Tensor:
        weight = self.pos_weight
        if weight is not None:
            numbers = torch.as_tensor(weight, dtype=output.dtype)
            weight = numbers.to(output.device, non_blocking=True)
        return functional.binary_cross_entropy_with_logits(output, targets, pos_weight=weight)

    def find_value_problems(self, targets: Tensor) -> Iterator[str]:
        """Targets must lie in 0..1."""
        low, high = map(float, torch.aminmax(targets)) if targets.numel() else (0.0, 1.0)
        if low < 0 or high > 1:
            yield (
                f"Targets run from {low:g} to {high:g}, but must lie in 0..1, one for each class: "
                "for classes as numbers use task=lp.Classification(), for other numbers "
                "task=lp.Regression()."
            )


@dataclass(frozen=True)
class ElementLoss(Elementwise):
    """Another loss of torch that is a mean over elements.

    Attributes:
        criterion: the loss, as torch has it.

    Example:
        >>> ElementLoss(torch.nn.L1Loss()).weight((None, torch.zeros(2, 3)))
        6
    """

    criterion: Callable[[Tensor, Tensor], Tensor]

    def compare(self, output: Tensor, targets: Tensor) -> Tensor:
        return self.criterion(output, targets)
