"""Local losses: what is minimised at a module's end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import check
from localprop.rule.auxiliary import Site


class Batch(NamedTuple):
    """The network's inputs (N, ...) and the targets, (N,) or one per position (N, T)."""

    inputs: Tensor
    targets: Tensor


class Seen(NamedTuple):
    """What a loss may read.

    Attributes:
        inputs: the network's (N, ...).
        targets: (N,), or one per position (N, T).
        inlet: the input of the loss's module (N, ...), for a loss that asks for it.
        taps: the inner outputs that a loss asks for, by the names of the modules that returned them.
        errors: for an attached loss, a list that all of a step share: each may leave its error for the next module's.
    """

    inputs: Tensor
    targets: Tensor
    inlet: Tensor | None = None
    taps: Mapping[str, Tensor] = MappingProxyType({})
    errors: list[Tensor] | None = None


class LocalLoss(nn.Module):
    """A loss at a module's end: forward(features, aux, seen) -> scalar, a mean over the batch. It may own parameters.

    Attributes:
        inlet: whether it looks at the input of its module, as a constant: seen.inlet.
        taps: names of modules of the network, inside the loss's own module, whose outputs it looks at and, as far as it
            depends on them, trains: seen.taps.
        attached: whether it differentiates through its module, a second-order loss: features and seen.inlet then belong
            to the module's graph. It runs in one process only, on modules that are whole segments, without recompute.
    """

    inlet: bool = False
    taps: tuple[str, ...] = ()
    attached: bool = False

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        """The loss of the features (N, ...), seen through the auxiliary network."""
        raise NotImplementedError

    def problems(self, targets: Tensor, outputs: torch.Size) -> Iterable[str]:
        """What is wrong with targets, which are on the CPU, for a network whose outputs have this shape."""
        return ()


LossBuilder = Callable[[Site], LocalLoss]
Penalty = Callable[[Site, LocalLoss], LocalLoss]


@dataclass(frozen=True)
class NoPenalty:
    """Adds nothing to a loss."""

    def __call__(self, site: Site, loss: LocalLoss) -> LocalLoss:
        return loss


class _CrossEntropyLoss(LocalLoss):
    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        logits, targets = aux(features), seen.targets
        if logits.ndim > 2 and not targets.is_floating_point():  # (N, T, classes): one target per position
            logits, targets = logits.flatten(0, -2), targets.flatten()
        return functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def problems(self, targets: Tensor, outputs: torch.Size) -> Iterable[str]:
        """Targets must be classes, int64; or probabilities of each."""
        if outputs[-1] < 2:
            yield "The model has 1 output, whose cross-entropy is always 0: give it one for each of 2 or more classes."
            return
        if targets.is_floating_point() and targets.ndim > 1:
            yield from _probability_problems(targets, outputs)
            return
        if targets.dtype != torch.int64:
            yield f"Targets are {targets.dtype}, but cross-entropy takes classes as torch.int64: use targets.long()."
            return
        low, high, classes = int(targets.min()), int(targets.max()), outputs[-1]
        if low < 0 or high >= classes:
            yield f"Labels run from {low} to {high}, but the model has {classes} outputs: they must lie in 0..{classes - 1}."


def _probability_problems(targets: Tensor, outputs: torch.Size) -> Iterable[str]:
    if len(outputs) > 2:
        yield f"Targets are {targets.dtype}, but of a model with outputs at each position they are classes: use torch.int64."
    elif targets.shape[1:] != outputs[1:]:
        yield (
            f"Targets have shape {tuple(targets.shape)}, but the model has {outputs[-1]} outputs: give classes (N,) as "
            f"torch.int64, or probabilities (N, {outputs[-1]})."
        )
    elif (targets < 0).any() or ((targets.float().sum(1) - 1).abs() > 1e-2).any():  # bfloat16 has three digits
        yield (
            "Targets are neither classes, as torch.int64, nor probabilities, which are 0 or more and sum to 1 in each row: "
            "cross-entropy is for one class per sample; for another task give the rule's loss and the learner's task your own."
        )


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the auxiliary network's outputs (N, classes) with the targets (N,), int64; or of (N, T, classes).

    Targets may be probabilities of the classes, too: (N, classes), 0 or more, with a sum of 1.

    Attributes:
        label_smoothing: share of the target spread over all classes.

    Raises:
        BadInput: a label smoothing outside [0, 1).

    Example:
        >>> CrossEntropy(label_smoothing=0.1)
        CrossEntropy(label_smoothing=0.1)
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        inside = 0 <= self.label_smoothing < 1
        check([] if inside else [f"label_smoothing={self.label_smoothing} must lie in [0, 1)."])

    def __call__(self, site: Site) -> LocalLoss:
        return _CrossEntropyLoss(self.label_smoothing)
