"""SGR: successive gradient reconciliation (Yang et al., ICML 2024, arXiv 2406.05222)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.arguments import check_arguments
from localprop.errors import check
from localprop.rule.attach import AttachPoint
from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.local_loss import LocalLoss, LossInputs
from localprop.rule.losses import PenalizedLoss
from localprop.rule.rule import Rule

__all__ = ["GradientReconciliation", "sgr"]


class _ReconciledLoss(PenalizedLoss):
    """A loss plus the distance of two gradients at the module's input.

    The losses of a step run in the order of their modules and share the list `inputs.gradients`:

        loss k-1  appends  g_out = d loss_{k-1} / d h_{k-1}
        loss k    pops     g_out, compares it with g_in = d loss_k / d h_{k-1}, appends its own
    """

    def __init__(self, base: LocalLoss, penalty: GradientReconciliation, *, last: bool) -> None:
        super().__init__(base)
        self.second_order = True
        self.weight, self.distance, self.last = penalty.weight, penalty.distance, last

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        assert inputs.gradients is not None
        if not features.requires_grad:  # everything up to here is frozen
            features.requires_grad_()
        loss: Tensor = self.base(features, aux, inputs)
        if inputs.module_input is None and self.last:
            return loss
        input_gradient, output_gradient = self._differentiate(loss, features, inputs.module_input)
        previous = inputs.gradients.pop() if inputs.gradients else None
        if output_gradient is not None:
            inputs.gradients.append(output_gradient)
        if input_gradient is None or previous is None:
            return loss
        return loss + self.weight * self._measure(input_gradient.flatten(1), previous.flatten(1))

    def _differentiate(
        self, loss: Tensor, features: Tensor, module_input: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Differentiate each sample's loss with respect to the module's input and its features.

        The first gradient is differentiable, the second a constant. The loss is a mean over the
        batch, so the number of samples turns its gradients into those of single samples.
        """
        samples = len(features)
        wanted = [] if module_input is None else [module_input]
        if not self.last:
            wanted.append(features)
        # As everywhere, autocast is for forwards.
        with torch.autocast(features.device.type, enabled=False):
            found = list(torch.autograd.grad(loss, wanted, create_graph=True))
        input_gradient = None if module_input is None else found.pop(0) * samples
        return input_gradient, found[0].detach() * samples if found else None

    def _measure(self, one: Tensor, other: Tensor) -> Tensor:
        """The mean distance of the rows of two matrices."""
        if self.distance == "cosine":
            return 1 - functional.cosine_similarity(one, other).mean()
        return (one - other).square().sum(1).mean()


@check_arguments
@dataclass(frozen=True)
class GradientReconciliation:
    """SGR's successive gradient reconciliation.

    Penalises the distance between the gradient of module k's loss with respect to its input and the
    gradient of module k-1's loss with respect to its output::

        penalty of module k > 0 = weight * mean over samples n of |g_in,n - g_out,n|^2
        g_out,n = d l_{k-1},n / d h_{k-1}, a constant          g_in,n = d l_k,n / d h_{k-1}

    with l_k,n the loss of sample n at module k's end, before any penalty of this kind. The penalty
    trains module k and its auxiliary network by second derivatives. Only the constant crosses the
    cut, and no parameters are added.

    Our reading: the paper's distance and weight are not known, nor is whether its gradients are
    those of a sample or of the batch's mean. We use those of a sample, so that micro-batches do not
    change the scale of the penalty.

    It runs in one process, on modules that only their own loss trains, without recompute. Attention
    runs without its fused kernels, which have no second derivative. Any other operation without a
    second derivative fails.

    Attributes:
        weight: lambda.
        distance: "squared", the sum of squares over a sample, or "cosine", 1 minus the cosine.

    Raises:
        BadInput: a weight that is not positive, or an unknown distance.

    Example:
        >>> GradientReconciliation(weight=0.1)
        GradientReconciliation(weight=0.1, distance='squared')

    Source: Yang, Li, Alfarra, Hammoud, Bibi, Torr, Ghanem, Towards Interpretable Deep Local
    Learning with Successive Gradient Reconciliation, ICML 2024, arXiv 2406.05222.
    """

    weight: float = 1.0
    distance: str = "squared"

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.weight < float("inf"):
            problems.append(f"weight={self.weight} must be positive and finite.")
        if self.distance not in ("squared", "cosine"):
            problems.append(f"distance={self.distance!r} must be squared or cosine.")
        check(problems)

    def __call__(self, point: AttachPoint, loss: LocalLoss) -> LocalLoss:
        if point.modules == 1:  # there is no cut
            return loss
        return _ReconciledLoss(loss, self, last=point.module == point.modules - 1)


@check_arguments
def sgr(
    weight: float = 1.0,
    distance: str = "squared",
    aux: AuxBuilder = Head(),  # noqa: B008 - parts are frozen
) -> Rule:
    """SGR: successive gradient reconciliation, a penalty on gradients that disagree at a cut.

    Equations, with n a sample and l_k its loss at module k's end::

        L_k = l_k + weight * mean over n of
              |d l_{k,n} / d h_{k-1,n} - sg(d l_{k-1,n} / d h_{k-1,n})|^2        k > 1
        gradient of f_k and a_k = dL_k

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    Second derivatives run through the module and its auxiliary network. So a module's graph is
    larger, recompute and several ranks are refused, and fused attention kernels are not used. Our
    reading: the distance, its weight and gradients per sample (see `GradientReconciliation`).
    Nothing is known of the paper's heads.

    Args:
        weight: lambda.
        distance: "squared" or "cosine".
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.sgr(weight=0.1)

    Reference: Yang, Li, Alfarra, Hammoud, Bibi, Torr, Ghanem, Towards Interpretable Deep Local
    Learning with Successive Gradient Reconciliation, ICML 2024, arXiv 2406.05222.
    """
    penalty = GradientReconciliation(weight, distance)
    return Rule(aux=aux, penalty=penalty, reference="Yang et al. 2024, arXiv 2406.05222")
