"""Local losses: what is minimised at a module's end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import check
from localprop.rule.auxiliary import Site


class Batch(NamedTuple):
    """What a loss may read: the network's inputs (N, ...) and the targets (N,)."""

    inputs: Tensor
    targets: Tensor


class LocalLoss(nn.Module):
    """A loss at a module's end: forward(features, aux, batch) -> scalar, a mean over the batch. It may own parameters."""

    def forward(self, features: Tensor, aux: nn.Module, batch: Batch) -> Tensor:
        """The loss of the features (N, ...), seen through the auxiliary network."""
        raise NotImplementedError

    def problems(self, targets: Tensor, outputs: torch.Size) -> Iterable[str]:
        """What is wrong with targets, which are on the CPU, for a network whose outputs have this shape."""
        return ()


LossBuilder = Callable[[Site], LocalLoss]


class _CrossEntropyLoss(LocalLoss):
    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, features: Tensor, aux: nn.Module, batch: Batch) -> Tensor:
        logits = aux(features)
        return functional.cross_entropy(logits, batch.targets, label_smoothing=self.label_smoothing)

    def problems(self, targets: Tensor, outputs: torch.Size) -> Iterable[str]:
        """Targets must be classes, int64; or probabilities of each."""
        if targets.is_floating_point() and targets.ndim > 1:
            return
        if targets.dtype != torch.int64:
            yield f"Targets are {targets.dtype}, but cross-entropy takes classes as torch.int64: use targets.long()."
            return
        low, high, classes = int(targets.min()), int(targets.max()), outputs[1]
        if low < 0 or high >= classes:
            yield f"Labels run from {low} to {high}, but the model has {classes} outputs: they must lie in 0..{classes - 1}."


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the auxiliary network's outputs (N, classes) with the targets (N,), int64.

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
