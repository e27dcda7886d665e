"""Losses of torch, and functions, as tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import BadInput, check
from localprop.tasks.classification import Classification
from localprop.tasks.elementwise import ElementLoss, MultiLabel, Regression
from localprop.tasks.task import Task, describe, find_targets

Criterion = Callable[[Tensor, Any], Tensor]
MODULES: dict[Criterion, type[nn.Module]] = {
    functional.binary_cross_entropy: nn.BCELoss,
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.huber_loss: nn.HuberLoss,
    functional.kl_div: nn.KLDivLoss,
    functional.l1_loss: nn.L1Loss,
    functional.mse_loss: nn.MSELoss,
    functional.nll_loss: nn.NLLLoss,
    functional.poisson_nll_loss: nn.PoissonNLLLoss,
    functional.smooth_l1_loss: nn.SmoothL1Loss,
    functional.soft_margin_loss: nn.SoftMarginLoss,
}
# Means over elements. torch's documentation says so under `reduction`.
OF_ELEMENTS = (
    nn.BCELoss, nn.BCEWithLogitsLoss, nn.HuberLoss, nn.KLDivLoss, nn.L1Loss, nn.PoissonNLLLoss,
    nn.SmoothL1Loss, nn.SoftMarginLoss,
)  # fmt: skip


@dataclass(frozen=True)
class FunctionLoss(Task):
    """A loss of outputs and targets whose weight nobody knows, unless `of_samples` says so.

    Attributes:
        criterion: a function (output, targets) that returns a mean.
        of_samples: whether the mean is over samples.

    Example:
        >>> task = FunctionLoss(lambda output, targets: (output * targets).mean())
        >>> task.loss(torch.ones(2), (None, torch.ones(2)))
        tensor(1.)
    """

    criterion: Criterion
    of_samples: bool = False

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        targets = find_targets(batch)
        if targets is None:
            raise BadInput(
                f"The batch has no targets for {_name(self.criterion)}: say what the loss gets, as "
                "in task=lp.task(loss=..., targets=lambda batch: batch['xyz']), or "
                "targets=lambda batch: batch for a loss of the whole batch."
            )
        loss = self.criterion(output, targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise BadInput(
                f"{_name(self.criterion)} returns {describe(loss)}, but a loss is a mean over the "
                "batch, a tensor without dimensions: use .mean()."
            )
        return loss

    def weight(self, batch: Any) -> float | None:
        targets = find_targets(batch)
        return len(targets) if self.of_samples and isinstance(targets, Tensor) else None


@dataclass(frozen=True)
class LogLikelihood(Classification):
    """The negative log-likelihood of classes: outputs are the logarithms of probabilities.

    Raises:
        BadInput: as for `Classification`.
    """

    def _compare(
        self, output: Tensor, targets: Tensor, weights: Tensor | None, reduction: str
    ) -> Tensor:
        return functional.nll_loss(
            output, targets, weight=weights, ignore_index=self.ignore_index, reduction=reduction
        )


def make_task(loss: Criterion) -> Task:
    """The task of a loss: a module or function of torch, or a function of the user's.

    Raises:
        BadInput: the loss is no mean, or has parameters.

    Example:
        >>> make_task(torch.nn.functional.mse_loss)
        Regression()
    """
    if loss in MODULES:
        loss = MODULES[loss]()
    if not isinstance(loss, nn.Module):
        return FunctionLoss(loss)
    reduction = getattr(loss, "reduction", "mean")
    problems = []
    if reduction not in ("mean", "batchmean"):
        problems.append(
            f"{_name(loss)} has reduction={reduction!r}, but a loss must be a mean: it is weighed "
            "by its denominator, so that parts of a batch add up to the whole. Use "
            "reduction='mean'."
        )
    if list(loss.parameters()):
        problems.append(
            f"{_name(loss)} has parameters, which nobody would train: make them a part of the "
            "model."
        )
    check(problems)
    if type(loss).__module__ != nn.MSELoss.__module__:  # a subclass may compute anything
        return FunctionLoss(loss)
    match loss:
        case nn.CrossEntropyLoss():
            return Classification(loss.label_smoothing, loss.weight, loss.ignore_index, dim=1)
        case nn.NLLLoss():
            return LogLikelihood(class_weights=loss.weight, ignore_index=loss.ignore_index, dim=1)
        case nn.MSELoss():
            return Regression()
        case nn.BCEWithLogitsLoss() if loss.weight is None and _is_vector(loss.pos_weight):
            return MultiLabel(loss.pos_weight)
        case nn.KLDivLoss(reduction="batchmean"):
            return FunctionLoss(loss, of_samples=True)
    return ElementLoss(loss) if isinstance(loss, OF_ELEMENTS) else FunctionLoss(loss)


def _is_vector(weight: Tensor | None) -> bool:
    return weight is None or weight.ndim == 1


def _name(loss: object) -> str:
    return getattr(loss, "__name__", type(loss).__name__)
