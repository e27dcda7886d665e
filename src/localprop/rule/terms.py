"""Losses made of losses: weighted sums, with weights that change from module to module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from localprop.errors import BadInput, check
from localprop.rule.auxiliary import Site
from localprop.rule.losses import CrossEntropy, LocalLoss, LossBuilder, Seen


@dataclass(frozen=True)
class Term:
    """A loss and its weight, which goes linearly from the first to the last module with an auxiliary network.

    Attributes:
        loss: builds the loss.
        first: the weight at the first module.
        last: the weight at the last local one, the module before the network's own classifier; None: that of the first.

    Raises:
        BadInput: weights that are negative or not finite.

    Example:
        >>> Term(CrossEntropy(), first=0.5, last=1.0)
        Term(loss=CrossEntropy(label_smoothing=0.0), first=0.5, last=1.0)
    """

    loss: LossBuilder = field(default=CrossEntropy())
    first: float = 1.0
    last: float | None = None

    def __post_init__(self) -> None:
        weights = [("first", self.first), *([] if self.last is None else [("last", self.last)])]
        check(
            f"Term({name}={weight!r}): a weight must be a finite number, 0 or more."
            for name, weight in weights
            if not isinstance(weight, int | float) or not 0 <= weight < float("inf")
        )

    def weight(self, site: Site) -> float:
        """The weight at a site: r of the way from first to last, r = k / (K - 2) for module k = 0..K-2; 0 for K = 2."""
        if self.last is None or site.modules <= 2:
            return self.first
        passed = min(site.module / (site.modules - 2), 1)
        return self.first * (1 - passed) + self.last * passed


class _Sum(LocalLoss):
    def __init__(self, parts: Sequence[LocalLoss], weights: Sequence[float]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.weights = tuple(weights)
        self.inlet = any(part.inlet for part in parts)
        self.taps = tuple(dict.fromkeys(name for part in parts for name in part.taps))
        self.attached = any(part.attached for part in parts)

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        return torch.stack(
            [weight * part(features, aux, seen) for part, weight in zip(self.parts, self.weights, strict=True)]
        ).sum()

    def problems(self, targets: Tensor, outputs: torch.Size) -> Iterable[str]:
        """What any of the parts says."""
        for part in self.parts:
            assert isinstance(part, LocalLoss)
            yield from part.problems(targets, outputs)


@dataclass(frozen=True)
class Terms:
    """A weighted sum of losses, which share the auxiliary network. A term of weight 0 at a module is not built there.

    Equation, at module k = 0..K-2 of those with a loss::

        L_k = sum over terms of (first * (1 - r) + last * r) * loss_k,    r = k / (K - 2)

    Attributes:
        terms: at least one.

    Raises:
        BadInput: no terms, or what is none; at a module, weights that are all 0: it would have no signal to learn from.

    Example (InfoPro's, ResNet-32 in 16 modules):
        >>> loss = lp.Terms((lp.Term(lp.PixelReconstruction(), 5.0, 0.2), lp.Term(lp.CrossEntropy(), 0.05, 0.5)))

    Source: the linear weights are those of Wang et al. (InfoPro), ICLR 2021, arXiv 2101.10832, official code.
    """

    terms: tuple[Term, ...] = (Term(),)

    def __post_init__(self) -> None:
        check(self._problems())

    def __call__(self, site: Site) -> LocalLoss:
        weighted = [(term, weight) for term in self.terms if (weight := term.weight(site)) > 0]
        if not weighted:
            raise BadInput(
                f"Every weight of Terms is 0 at module {site.module}, which would have no signal to learn from: "
                "give one of its terms a positive weight."
            )
        return _Sum([term.loss(site) for term, _ in weighted], [weight for _, weight in weighted])

    def _problems(self) -> Iterator[str]:
        if not isinstance(self.terms, tuple):
            yield f"terms={self.terms!r} must be a tuple: write (Term(...),) for one."
        elif not self.terms:
            yield "terms=() is empty: give at least one Term(...)."
        else:
            yield from (
                f"terms has {term!r}, where Term(...) is needed." for term in self.terms if not isinstance(term, Term)
            )
