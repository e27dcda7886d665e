"""The supervised contrastive loss: samples of one class lie together, others apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import check
from localprop.rule.auxiliary import Site
from localprop.rule.losses import LocalLoss, Seen


class _ContrastiveLoss(LocalLoss):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        outputs = aux(features)
        check(self.problems(seen.targets, outputs.shape))
        with torch.autocast(features.device.type, enabled=False):
            rows = functional.normalize(outputs.to(torch.promote_types(outputs.dtype, torch.float32)))
            return self._of(rows, seen.targets)

    def problems(self, targets: Tensor, outputs: torch.Size) -> Iterable[str]:
        """Targets must be classes, int64."""
        if targets.dtype != torch.int64 or targets.ndim != 1:
            yield (
                f"Targets are {targets.dtype} of shape {tuple(targets.shape)}, but Contrastive takes classes (N,) as "
                "torch.int64: give labels, not probabilities."
            )

    def _of(self, rows: Tensor, labels: Tensor) -> Tensor:
        """The loss of rows (N, D) of length 1."""
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        similar = rows @ rows.T / self.temperature
        chances = similar.masked_fill(itself, -torch.inf).log_softmax(1)
        friends = (labels[:, None] == labels[None]) & ~itself
        return -(chances.masked_fill(~friends, 0).sum(1) / friends.sum(1).clamp(min=1)).mean()


@dataclass(frozen=True)
class Contrastive:
    """The supervised contrastive loss of the auxiliary network's outputs (N, D) with classes (N,), over the whole batch.

    Equation, with z_i the outputs scaled to length 1 and P(i) the others of sample i's class::

        L = -1/N sum over i of 1/|P(i)| sum over p in P(i) of log( exp(z_i z_p / T) / sum over j != i of exp(z_i z_j / T) )

    A sample that is alone in its class adds 0. There is one view per sample. It is computed in float32 under autocast too, and
    sees one micro-batch at a time. Give the auxiliary network an output of 128: aux=Head(outputs=128).

    Attributes:
        temperature: T.

    Raises:
        BadInput: a temperature that is not positive; a network with an output per token; targets that are no classes, int64.

    Example:
        >>> rule = lp.Rule(aux=lp.Head(outputs=128), loss=lp.Contrastive())

    Source: Khosla et al., Supervised Contrastive Learning, 2020, arXiv 2004.11362, in the form of Wang et al. (InfoPro), ICLR
    2021, arXiv 2101.10832, official code.
    """

    temperature: float = 0.07

    def __post_init__(self) -> None:
        good = 0 < self.temperature < float("inf")
        check([] if good else [f"temperature={self.temperature} must be positive and finite."])

    def __call__(self, site: Site) -> LocalLoss:
        check(one_label_problems("Contrastive", site))
        return _ContrastiveLoss(self.temperature)


def one_label_problems(loss: str, site: Site) -> Iterator[str]:
    """That a loss compares whole samples, where a network has more than one label for each."""
    if len(site.layers.output_shape) > 2:
        yield (
            f"{loss} compares samples, each with one label, but the network's outputs are {tuple(site.layers.output_shape)}: "
            "use another loss, such as loss=CrossEntropy()."
        )
