"""Weighted sums of losses, whose weights change from module to module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.rule.attach import AttachPoint
from localprop.rule.local_loss import LocalLoss, LossInputs
from localprop.rule.losses import LossBuilder, TaskLoss

__all__ = ["Term", "Terms"]


@check_arguments
@dataclass(frozen=True)
class Term:
    """A loss and its weight, which changes linearly from module to module.

    Attributes:
        loss: builds the loss.
        first: the weight at the first module.
        last: the weight at the last module with an auxiliary network, which is the one before the
            network's own classifier. None: the same as `first`.

    Raises:
        BadInput: a weight is negative or not finite.

    Example:
        >>> Term(TaskLoss(), first=0.5, last=1.0)
        Term(loss=TaskLoss(), first=0.5, last=1.0)
    """

    loss: LossBuilder = field(default=TaskLoss())
    first: float = 1.0
    last: float | None = None

    def __post_init__(self) -> None:
        weights = [("first", self.first)]
        if self.last is not None:
            weights.append(("last", self.last))
        check(
            f"Term({name}={weight!r}): a weight must be a finite number, 0 or more."
            for name, weight in weights
            if not isinstance(weight, int | float) or not 0 <= weight < float("inf")
        )

    def weight(self, point: AttachPoint) -> float:
        """The weight at an attach point: first * (1 - r) + last * r.

        r is k / (K - 2) for module k = 0..K-2, and 0 for K = 2.
        """
        if self.last is None or point.modules <= 2:
            return self.first
        r = min(point.module / (point.modules - 2), 1)
        return self.first * (1 - r) + self.last * r


class _WeightedSum(LocalLoss):
    def __init__(self, losses: Sequence[LocalLoss], weights: Sequence[float]) -> None:
        super().__init__()
        # The names of these entries of the state dict are part of the checkpoint format.
        self.parts = nn.ModuleList(losses)
        self.weights = tuple(weights)
        self.module_input = any(loss.module_input for loss in losses)
        self.taps = tuple(dict.fromkeys(name for loss in losses for name in loss.taps))
        self.second_order = any(loss.second_order for loss in losses)
        self.uses_aux = any(loss.uses_aux for loss in losses)

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        weighted = [
            weight * loss(features, aux, inputs)
            for loss, weight in zip(self.parts, self.weights, strict=True)
        ]
        return torch.stack(weighted).sum()

    def find_problems(self, inputs: LossInputs, outputs: torch.Size) -> Iterable[str]:
        """Find the problems of all losses of the sum."""
        for loss in self.parts:
            assert isinstance(loss, LocalLoss)
            yield from loss.find_problems(inputs, outputs)


@dataclass(frozen=True)
class Terms:
    """A weighted sum of losses that share the auxiliary network.

    A term of weight 0 at a module is not built there.

    Equation, for the modules k = 0..K-2 with an auxiliary network::

        L_k = sum over terms of (first * (1 - r) + last * r) * loss_k,    r = k / (K - 2)

    Attributes:
        terms: one term or more.

    Raises:
        BadInput: there are no terms, or `terms` holds something else. A module where all weights
            are 0 has no signal to learn from and raises it too, when the loss is built.

    Example (InfoPro's, ResNet-32 in 16 modules):
        >>> reconstruction = lp.Term(lp.PixelReconstruction(), 5.0, 0.2)
        >>> loss = lp.Terms((reconstruction, lp.Term(lp.TaskLoss(), 0.05, 0.5)))

    Source: the linear weights are those of Wang et al. (InfoPro), ICLR 2021, arXiv 2101.10832,
    official code.
    """

    terms: tuple[Term, ...] = (Term(),)

    def __post_init__(self) -> None:
        check(self._find_problems())

    def __call__(self, point: AttachPoint) -> LocalLoss:
        weighted = [(term, weight) for term in self.terms if (weight := term.weight(point)) > 0]
        if not weighted:
            raise BadInput(
                f"Every weight of Terms is 0 at module {point.module}, which would have no signal "
                "to learn from: give one of its terms a positive weight."
            )
        losses = [term.loss(point) for term, _ in weighted]
        return _WeightedSum(losses, [weight for _, weight in weighted])

    def _find_problems(self) -> Iterator[str]:
        if not isinstance(self.terms, tuple):
            yield f"terms={self.terms!r} must be a tuple: write (Term(...),) for one."
        elif not self.terms:
            yield "terms=() is empty: give at least one Term(...)."
        else:
            for term in self.terms:
                if not isinstance(term, Term):
                    yield f"terms has {term!r}, where Term(...) is needed."
