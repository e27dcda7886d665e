"""GN-DGL: local learning with neuron groups (Patel et al., 2023, arXiv 2301.07635)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.models.resnet import init_convs
from localprop.rule.attach import AttachPoint
from localprop.rule.auxiliary import AuxBuilder, Head, Pool
from localprop.rule.local_loss import LocalLoss, LossInputs
from localprop.rule.rule import Rule

__all__ = ["GroupCrossEntropy", "GroupHeads", "WideningHead", "gn_dgl"]


# --- auxiliary networks ---------------------------------------------------------------------------


@check_arguments
@dataclass(frozen=True)
class WideningHead:
    """GN-DGL's classifier: a 3x3 convolution from C to 2C channels, an average, two linear layers.

    The convolution has stride 2 and is followed by BatchNorm and ReLU, the first linear layer by
    ReLU. It equals `Head`'s 1c2f except where the network's maps have their last width: there
    `Head` neither widens nor halves the map. Features that are not maps get `Head`, since nothing
    is published for them.

    Attributes:
        hidden: the width of the first linear layer. The official code's grows with the network: it
            is 128 for a stem of 16 channels, and 256 for one of 32.

    Raises:
        BadInput: `hidden` is below 1.

    Example:
        >>> WideningHead(hidden=64)
        WideningHead(hidden=64)

    Source: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023, arXiv
    2301.07635, official code.
    """

    hidden: int = 128

    def __post_init__(self) -> None:
        check([] if self.hidden >= 1 else [f"hidden={self.hidden} must be 1 or more."])

    def __call__(self, point: AttachPoint) -> nn.Module:
        if not point.is_map():
            return Head(hidden=self.hidden)(point)
        width = point.width()
        head = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            Pool(1),
            nn.Linear(2 * width, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, point.outputs),
        )
        init_convs(head)
        return head


class _HeadOfEachGroup(nn.Module):
    """(N, C, ...) -> (groups, N, ..., classes)."""

    def __init__(self, heads: list[nn.Module], dim: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.dim = dim

    def forward(self, features: Tensor) -> Tensor:
        outputs = [head(self._detach_others(features, g)) for g, head in enumerate(self.heads)]
        return torch.stack(outputs)

    def _detach_others(self, features: Tensor, group: int) -> Tensor:
        """All channels, but only those of one group propagate a gradient."""
        groups = features.chunk(len(self.heads), self.dim)
        selected = [
            channels if g == group else channels.detach() for g, channels in enumerate(groups)
        ]
        return torch.cat(selected, self.dim)


@check_arguments
@dataclass(frozen=True)
class GroupHeads:
    """A head for each group of channels: (N, C, H, W) -> (groups, N, classes).

    A head reads all channels, but its gradient reaches only the channels of its own group. Groups
    are neighbouring channels, as in grouped convolutions.

    Attributes:
        groups: G.
        head: builds the head of a group.

    Raises:
        BadInput: `groups` is below 1 or does not divide the number of channels.

    Example:
        >>> GroupHeads(groups=4).head
        WideningHead(hidden=128)

    Source: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023, arXiv
    2301.07635, official code.
    """

    groups: int = 2
    head: AuxBuilder = WideningHead()

    def __post_init__(self) -> None:
        check([] if self.groups >= 1 else [f"groups={self.groups} must be 1 or more."])

    def __call__(self, point: AttachPoint) -> nn.Module:
        width = point.width()
        if width % self.groups:
            raise BadInput(
                f"GroupHeads(groups={self.groups}): module {point.module} ends with {width} "
                "channels, which cannot be shared evenly: choose a divisor of all widths."
            )
        heads = [self.head(point) for _ in range(self.groups)]
        return _HeadOfEachGroup(heads, point.dimension())


# --- the loss -------------------------------------------------------------------------------------


class _GroupCrossEntropyLoss(LocalLoss):
    def __init__(self, diversity: float, temperature: float) -> None:
        super().__init__()
        self.diversity = diversity
        self.temperature = temperature

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        if inputs.targets.is_floating_point():
            raise BadInput(
                "GroupCrossEntropy needs targets that are classes (int64): give labels, not "
                "probabilities."
            )
        logits, targets = aux(features).flatten(1, -2), inputs.targets.flatten()
        losses = (functional.cross_entropy(of_group, targets) for of_group in logits)
        total: Tensor = sum(losses, start=logits.new_zeros(()))
        if self.diversity:
            total = total + self.diversity * self._compute_agreement(logits, targets)
        return total

    def _compute_agreement(self, logits: Tensor, targets: Tensor) -> Tensor:
        """How much pairs of groups agree on the wrong classes, from (groups, N, classes).

        The mean inner product of their predictions, which are scaled to length 1 without the true
        class.
        """
        groups, count, classes = logits.shape
        if groups == 1:
            return logits.new_zeros(())
        true = targets[:, None] == torch.arange(classes, device=targets.device)
        # A softmax over the other classes only: it removes the true class and renormalises.
        predictions = (logits / self.temperature).masked_fill(true, -torch.inf).softmax(-1)
        predictions = functional.normalize(predictions, dim=-1)
        # The sum over all pairs g != h of <b_g, b_h> is |sum of b_g|^2 - sum of |b_g|^2.
        pairs = predictions.sum(0).square().sum() - predictions.square().sum()
        return pairs / (count * groups * (groups - 1))


@check_arguments
@dataclass(frozen=True)
class GroupCrossEntropy:
    """The sum of the groups' cross-entropies, and a penalty on groups that agree on wrong classes.

    Equation, for an auxiliary network with outputs z (groups, N, classes)::

        L = sum over g of CE(z_g, y)
            + diversity * sum over g != h and samples of <b_g, b_h> / (N G (G - 1))
        b_g = softmax(z_g / temperature) without the true class,
              renormalised to the sum 1, then to length 1

    Attributes:
        diversity: the weight of the penalty. 0 leaves it out.
        temperature: the temperature of the softmax.

    Raises:
        BadInput: `diversity` is negative, `temperature` is not positive, or targets are
            probabilities.

    Example:
        >>> GroupCrossEntropy(diversity=0.0)
        GroupCrossEntropy(diversity=0.0, temperature=3.0)

    Source: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023, arXiv
    2301.07635, official code.
    """

    diversity: float = 0.5
    temperature: float = 3.0

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.diversity < float("inf"):
            problems.append(f"diversity={self.diversity} must be 0 or more.")
        if not 0 < self.temperature < float("inf"):
            problems.append(f"temperature={self.temperature} must be positive and finite.")
        check(problems)

    def __call__(self, point: AttachPoint) -> LocalLoss:
        # Without the penalty there is no temperature.
        return _GroupCrossEntropyLoss(self.diversity, self.temperature if self.diversity else 1.0)


# --- the method -----------------------------------------------------------------------------------


@check_arguments
def gn_dgl(
    groups: int = 2,
    diversity: float = 0.5,
    temperature: float = 3.0,
    aux: AuxBuilder = WideningHead(),
) -> Rule:
    """GN-DGL: greedy local learning in which each group of a module's channels has its own loss.

    Equations, with h_k^(g) the module's output whose channels outside group g are constants, and D
    how much the groups agree on wrong classes (`GroupCrossEntropy`)::

        L_k = sum over g of CE(a_k^g(h_k^(g)), y) + diversity * D(a_k^1, .., a_k^G)
        gradient of f_k and a_k = dL_k

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The network is meant to be a grouped one, such as `models.grouped_resnet`: all of its
    convolutions but each module's first keep the groups apart, so a group's gradient stays within
    the group. On other networks, only the gradients at a module's end are grouped.

    All K modules of the paper have group heads, and the final classifier learns apart on constant
    features. In grouped networks this classifier is a layer of its own and here the last module, so
    the paper's K is K + 1 modules. The official code also has a K = 1 without group heads, which is
    `end_to_end`. Left out: predictions by an ensemble of all heads.

    Args:
        groups: G.
        diversity: the weight of D.
        temperature: the temperature of the softmax in D.
        aux: the head of each group. Give a network of twice the width `WideningHead(hidden=256)`.

    Raises:
        BadInput: a value that `GroupHeads` or `GroupCrossEntropy` does not accept.

    Example:
        >>> import localprop as lp
        >>> rule = lp.gn_dgl(groups=4)

    Reference: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023, arXiv
    2301.07635.
    """
    loss = GroupCrossEntropy(diversity, temperature)
    return Rule(
        aux=GroupHeads(groups, aux), loss=loss, reference="Patel et al. 2023, arXiv 2301.07635"
    )
