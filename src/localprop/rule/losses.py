"""Local losses: what training minimises at a module's end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import check
from localprop.rule.attach import AttachPoint
from localprop.rule.local_loss import LocalLoss, LossInputs

__all__ = ["CrossEntropy", "NoPenalty"]


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


class _CrossEntropyLoss(LocalLoss):
    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        logits, targets = aux(features), inputs.targets
        # (N, T, classes) with one target per position. Probabilities have the logits' shape.
        if logits.ndim > 2 and not targets.is_floating_point():
            logits, targets = logits.flatten(0, -2), targets.flatten()
        return functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def find_problems(self, targets: Tensor, outputs: torch.Size) -> Iterable[str]:
        """Targets must be classes (int64) or a probability for each class."""
        classes = outputs[-1]
        if classes < 2:
            yield (
                "The model has 1 output, so its cross-entropy is always 0: give the model one "
                "output for each of 2 or more classes."
            )
        elif targets.is_floating_point() and targets.ndim > 1:
            yield from _find_probability_problems(targets, outputs)
        elif targets.dtype != torch.int64:
            yield (
                f"Targets are {targets.dtype}, but cross-entropy takes classes as torch.int64: "
                "use targets.long()."
            )
        else:
            low, high = map(int, torch.aminmax(targets))
            if low < 0 or high >= classes:
                yield (
                    f"Labels run from {low} to {high}, but the model has {classes} outputs: labels "
                    f"must lie in 0..{classes - 1}."
                )


def _find_probability_problems(targets: Tensor, outputs: torch.Size) -> Iterable[str]:
    if len(outputs) > 2:
        yield (
            f"Targets are {targets.dtype}, but a model with an output for each position takes "
            "classes: use torch.int64."
        )
    elif targets.shape[1:] != outputs[1:]:
        yield (
            f"Targets have shape {tuple(targets.shape)}, but the model has {outputs[-1]} outputs: "
            f"give classes (N,) as torch.int64, or probabilities (N, {outputs[-1]})."
        )
    elif (targets < 0).any() or not _sum_to_one(targets):
        yield (
            "Targets are neither classes (torch.int64) nor probabilities (0 or more, with a sum of "
            "1 in each row): cross-entropy needs one class per sample. For another task, give the "
            "rule's loss and the learner's task your own loss."
        )


def _sum_to_one(targets: Tensor) -> bool:
    """Whether each row has the sum 1, up to the precision of bfloat16 (three digits)."""
    return not ((targets.float().sum(1) - 1).abs() > 1e-2).any()


@dataclass(frozen=True)
class CrossEntropy:
    """The cross-entropy of the auxiliary network's outputs with the targets.

    Outputs (N, classes) go with classes (N,) as int64 or with probabilities (N, classes), which are
    0 or more and have a sum of 1. Outputs (N, T, classes) go with classes (N, T).

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
        return _CrossEntropyLoss(self.label_smoothing)


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

    def find_problems(self, targets: Tensor, outputs: torch.Size) -> Iterable[str]:
        """Find the problems of the loss itself."""
        return self.base.find_problems(targets, outputs)


def find_label_problems(loss: str, point: AttachPoint) -> Iterator[str]:
    """Find out whether a loss that compares samples is used on a network with a label per position.

    Args:
        loss: the class of the loss, as the user writes it.
        point: where the loss is attached.
    """
    if len(point.layers.output_shape) > 2:
        yield (
            f"{loss} compares samples that have one label each, but the network's outputs are "
            f"{tuple(point.layers.output_shape)}: use another loss, such as loss=CrossEntropy()."
        )
