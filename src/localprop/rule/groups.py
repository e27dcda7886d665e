"""Neuron groups: several auxiliary networks at one module's end, each of which trains its own share of the channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import BadInput, check
from localprop.models.resnet import init_convs
from localprop.rule.auxiliary import AuxBuilder, Head, Pool, Site
from localprop.rule.losses import LocalLoss, Seen


@dataclass(frozen=True)
class WideningHead:
    """GN-DGL's classifier: conv3x3 C->2C, stride 2, BatchNorm, ReLU, global average, Linear, ReLU, Linear.

    It is :class:`Head`'s 1c2f but for the last stage of a network, where that one neither widens nor halves the map. Features
    that are no maps are given to that one: nothing is published for them.

    Attributes:
        hidden: the width of the first linear layer.

    Raises:
        BadInput: a width below 1.

    Example:
        >>> WideningHead(hidden=64)
        WideningHead(hidden=64)

    Source: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023, arXiv 2301.07635, and its code.
    """

    hidden: int = 128

    def __post_init__(self) -> None:
        check([] if self.hidden >= 1 else [f"hidden={self.hidden} must be 1 or more."])

    def __call__(self, site: Site) -> nn.Module:
        if not site.is_map():
            return Head(hidden=self.hidden)(site)
        width = site.width()
        head = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            Pool(1),
            nn.Linear(2 * width, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, site.outputs),
        )
        init_convs(head)
        return head


class _Grouped(nn.Module):
    """(N, C, ...) -> (groups, N, ..., classes)."""

    def __init__(self, heads: list[nn.Module], dim: int) -> None:
        super().__init__()
        self.heads, self.dim = nn.ModuleList(heads), dim

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([head(self._own(features, g)) for g, head in enumerate(self.heads)])

    def _own(self, features: Tensor, group: int) -> Tensor:
        """All channels, of which a gradient reaches those of the group alone."""
        parts = features.chunk(len(self.heads), self.dim)
        return torch.cat([part if g == group else part.detach() for g, part in enumerate(parts)], self.dim)


@dataclass(frozen=True)
class GroupHeads:
    """A head for each group of channels: it sees all channels, but the error that it sends back reaches its own alone.

    The groups are those of grouped convolutions, neighbouring channels: (N, C, H, W) -> (groups, N, classes).

    Attributes:
        groups: G.
        head: builds each.

    Raises:
        BadInput: fewer than one group, channels that are not a multiple of it.

    Example:
        >>> GroupHeads(groups=4).head
        WideningHead(hidden=128)

    Source: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023, arXiv 2301.07635, and its code.
    """

    groups: int = 2
    head: AuxBuilder = WideningHead()

    def __post_init__(self) -> None:
        check([] if self.groups >= 1 else [f"groups={self.groups} must be 1 or more."])

    def __call__(self, site: Site) -> nn.Module:
        width = site.width()
        if width % self.groups:
            raise BadInput(
                [
                    f"GroupHeads(groups={self.groups}): module {site.module} ends with {width} channels, which cannot be "
                    "shared evenly: choose a divisor of all widths."
                ]
            )
        return _Grouped([self.head(site) for _ in range(self.groups)], site.dimension())


# --- their loss -----------------------------------------------------------------------------------------------------------


class _GroupCrossEntropyLoss(LocalLoss):
    def __init__(self, diversity: float, temperature: float) -> None:
        super().__init__()
        self.diversity, self.temperature = diversity, temperature

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        if seen.targets.is_floating_point():
            raise BadInput(["GroupCrossEntropy needs targets that are classes, int64: give labels, not probabilities."])
        logits, targets = aux(features).flatten(1, -2), seen.targets.flatten()
        total: Tensor = sum((functional.cross_entropy(own, targets) for own in logits), start=logits.new_zeros(()))
        return total + self.diversity * self._likeness(logits, targets) if self.diversity else total

    def _likeness(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean inner product of the beliefs of two groups about the wrong classes, (groups, N, classes)."""
        groups, count, classes = logits.shape
        if groups == 1:
            return logits.new_zeros(())
        true = functional.one_hot(targets, classes).bool()
        # Without the true class a softmax is that of the other logits: removed and renormalised in one.
        beliefs = (logits / self.temperature).masked_fill(true, -torch.inf).softmax(-1)
        beliefs = functional.normalize(beliefs, dim=-1)
        # Of all pairs, sum over g != h of <b_g, b_h> = |sum of b_g|^2 - sum of |b_g|^2.
        pairs = beliefs.sum(0).square().sum() - beliefs.square().sum()
        return pairs / (count * groups * (groups - 1))


@dataclass(frozen=True)
class GroupCrossEntropy:
    """The sum of the groups' cross-entropies, and a penalty on groups that err alike; for an aux of (groups, N, classes)::

        L = sum over g of CE(z_g, y) + diversity * sum over g != h and samples of <b_g, b_h> / (N G (G - 1))
        b_g = softmax(z_g / temperature) without the true class, renormalised to the sum 1, then to length 1

    Attributes:
        diversity: w, the penalty's weight; 0 leaves it out.
        temperature: T.

    Raises:
        BadInput: a negative weight, a temperature that is not positive; targets that are probabilities.

    Example:
        >>> GroupCrossEntropy(diversity=0.0)
        GroupCrossEntropy(diversity=0.0, temperature=3.0)

    Source: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023, arXiv 2301.07635, and its code.
    """

    diversity: float = 0.5
    temperature: float = 3.0

    def __post_init__(self) -> None:
        problems = [] if 0 <= self.diversity < float("inf") else [f"diversity={self.diversity} must be 0 or more."]
        hot = 0 < self.temperature < float("inf")
        check([*problems, *([] if hot else [f"temperature={self.temperature} must be positive and finite."])])

    def __call__(self, site: Site) -> LocalLoss:
        return _GroupCrossEntropyLoss(self.diversity, self.temperature)
