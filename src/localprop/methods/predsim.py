"""PredSim: local losses of prediction and similarity matching.

Nøkland, Eidnes, ICML 2019, arXiv 1901.06656.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.models.resnet import init_convs
from localprop.rule.attach import AttachPoint
from localprop.rule.auxiliary import NoHead, pool_or_norm
from localprop.rule.credit import LocalCredit
from localprop.rule.local_loss import LocalLoss, LossInputs
from localprop.rule.losses import LossBuilder, TaskLoss, find_label_problems
from localprop.rule.rule import Rule
from localprop.rule.terms import Term, Terms

__all__ = ["PooledHead", "SimilarityLoss", "predsim"]

# Maps with fewer channels are images, which the official code compares pixel by pixel.
_LEAST_CHANNELS = 4


class _SimilarityMatchingLoss(LocalLoss):
    uses_aux = False

    def __init__(self, projection: nn.Module, channel: int, classes: int) -> None:
        super().__init__()
        self.projection = projection
        self.channel = channel
        self.classes = classes

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        projected = self._project(features)
        with torch.autocast(features.device.type, enabled=False):
            wide = projected.to(torch.promote_types(projected.dtype, torch.float32))
            similarities = _compute_similarities(_summarize(wide, self.channel))
            of_targets = _compute_similarities(self._make_rows(inputs.targets, wide.dtype))
            return functional.mse_loss(similarities, of_targets)

    def _project(self, features: Tensor) -> Tensor:
        if isinstance(self.projection, nn.Linear):
            # A linear layer expects the channels in the last dimension.
            rows: Tensor = self.projection(features.movedim(self.channel, -1))
            return rows.movedim(-1, self.channel)
        projected: Tensor = self.projection(features)
        return projected

    def _make_rows(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets as rows (N, classes): one-hot, or the probabilities themselves."""
        if targets.is_floating_point():
            return targets.to(dtype)
        return (targets[:, None] == torch.arange(self.classes, device=targets.device)).to(dtype)


def _summarize(features: Tensor, channel: int) -> Tensor:
    """One row per sample: the standard deviation of each channel over the positions.

    Features with a single position, and images, stay as they are.
    """
    positions = tuple(d for d in range(1, features.ndim) if d != channel)
    single = all(features.shape[d] == 1 for d in positions)
    if single or features.shape[channel] < _LEAST_CHANNELS:
        return features.flatten(1)
    return features.std(positions)


def _compute_similarities(rows: Tensor) -> Tensor:
    """The cosines (N, N) of all pairs of rows (N, D), after each row's mean is subtracted."""
    centred = rows - rows.mean(1, keepdim=True)
    unit: Tensor = centred / (centred.norm(dim=1, keepdim=True) + 1e-8)
    return (unit @ unit.T).clamp(-1, 1)


@check_arguments
@dataclass(frozen=True)
class SimilarityLoss:
    """PredSim's similarity matching: pairs of samples should be as similar as their labels.

    Equation, with g a 3x3 convolution (a linear layer for vectors and tokens) that keeps the width
    and has no bias::

        L = 1/N^2 sum over i, j of (S(g(h))_ij - S(onehot(y))_ij)^2
        S(z)_ij = cosine of r(z_i) - mean(r(z_i)) and r(z_j) - mean(r(z_j))

    r is the standard deviation of each channel over the positions of a sample. Vectors stay as they
    are. Tokens count as positions, which is our reading. The projection g belongs to the loss, and
    the auxiliary network is not used. Cosines are computed in float32, under autocast too, for the
    pairs within one micro-batch.

    Attributes:
        redraw: whether a convolution g starts like those of the CIFAR ResNets, at N(0, 2 / n) with
            n = 9 * width, as in AugLocal's code, and not as PyTorch draws it.

    Raises:
        BadInput: the network has an output per token.

    Example:
        >>> rule = lp.Rule(aux=lp.NoHead(), loss=lp.SimilarityLoss())

    Source: Nøkland, Eidnes, Training Neural Networks with Local Error Signals, ICML 2019, arXiv
    1901.06656, official code; Ma et al., AugLocal, ICLR 2024, arXiv 2402.17318, official code.
    """

    redraw: bool = False

    def __call__(self, point: AttachPoint) -> LocalLoss:
        check(find_label_problems("SimilarityLoss", point))
        width = point.width()
        projection: nn.Module
        if point.is_map():
            projection = nn.Conv2d(width, width, 3, padding=1, bias=False)
        else:
            projection = nn.Linear(width, width, bias=False)
        if self.redraw:
            init_convs(projection)
        return _SimilarityMatchingLoss(projection, point.dimension(), point.outputs)


@check_arguments
@dataclass(frozen=True)
class PooledHead:
    """PredSim's auxiliary classifier: an average pool to `features` numbers, one linear layer.

    The sides of the pool's kernel double in turn, the height first, until at most `features`
    numbers are left. A side that the kernel does not divide is padded with half a kernel of zeros
    at both ends. The linear layer has a bias. Vectors are classified as they are, tokens after an
    average.

    Attributes:
        features: the most numbers that the linear layer reads.
        zeros: whether the linear layer's weights start at 0, or as PyTorch draws them.

    Raises:
        BadInput: `features` is below 1.

    Example (2,048 features)::

        (N, 128, 32, 32) -> 8x8 averages -> (N, 128 * 4 * 4) -> (N, classes)
        (N, 256, 32, 32) -> 16x8 averages -> (N, 256 * 2 * 4) -> (N, classes)
        (N, 512, 12, 12) -> 8x8 averages of 20x20 -> (N, 512 * 2 * 2) -> (N, classes)

    Source: Nøkland, Eidnes, Training Neural Networks with Local Error Signals, ICML 2019, arXiv
    1901.06656, official code: 2,048 for CIFAR-10, SVHN and STL-10, 4,096 for wider networks and
    CIFAR-100, 1,024 for MNIST. The official code of AugLocal (Ma et al., ICLR 2024, arXiv
    2402.17318) has 512 and weights that do not start at 0.
    """

    features: int = 2048
    zeros: bool = True

    def __post_init__(self) -> None:
        if self.features < 1:
            raise BadInput(f"PooledHead(features={self.features}): features must be 1 or more.")

    def __call__(self, point: AttachPoint) -> nn.Module:
        width = point.width()
        body: list[nn.Module]
        if point.is_map():
            kernel = self.kernel(point.features)
            width = _count_pooled(point.features, kernel)
            body = [_build_padded_pool(point.features, kernel), nn.Flatten()]
        else:
            body = [pool_or_norm(point, width)]
        classifier = nn.Linear(width, point.outputs)
        if self.zeros:
            nn.init.zeros_(classifier.weight)
        return nn.Sequential(*body, classifier)

    def kernel(self, shape: torch.Size) -> tuple[int, int]:
        """The (height, width) of the pool's windows on maps (N, C, H, W), a whole map at most."""
        height, width = 1, 1
        double_height = True
        while _count_pooled(shape, (height, width)) > self.features:
            if height >= shape[2] and width >= shape[3]:
                break
            if double_height:
                height *= 2
            else:
                width *= 2
            double_height = not double_height
        return height, width


def _build_padded_pool(shape: torch.Size, kernel: tuple[int, int]) -> nn.AvgPool2d:
    """An average pool of maps (N, C, H, W); zeros are averaged like the rest.

    Half a kernel at both ends makes one window more, as the official code counts them. Where the
    kernel is larger than the side, the only window misses the last rows, there too.
    """
    height, width = (
        side // 2 if size % side else 0 for size, side in zip(shape[2:], kernel, strict=True)
    )
    return nn.AvgPool2d(kernel, padding=(height, width))


def _count_pooled(shape: torch.Size, kernel: tuple[int, int]) -> int:
    """How many numbers per sample are left of maps (N, C, H, W) after a padded pool."""
    return shape[1] * -(-shape[2] // kernel[0]) * -(-shape[3] // kernel[1])


@check_arguments
def predsim(beta: float = 0.99, features: int = 2048) -> Rule:
    """PredSim: greedy local learning by similarity matching and a little cross-entropy.

    Equations, with p an average pool to at most `features` numbers, D_k a linear layer, g_k a
    convolution of the loss's own, and S the cosines of all pairs in the batch (`SimilarityLoss`)::

        L_k = (1 - beta) * cross-entropy(D_k(p(h_k)), y)
            + beta * mean squared error(S(g_k(h_k)), S(onehot(y)))
        gradient of f_k, g_k and D_k = dL_k

    Credit: that of `greedy`::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The paper's "pred" is `predsim(beta=0)`, cross-entropy alone. Its "sim" is `predsim(beta=1)`,
    which has no auxiliary classifiers. The paper trains the network's own classifier with 1 - beta
    times the cross-entropy. We use the whole cross-entropy, which is the same under its optimizer,
    Adam, up to Adam's eps. In the paper, every convolution and hidden linear layer is a module.

    Args:
        beta: the share of similarity matching.
        features: the most numbers that a classifier reads: 2048 for CIFAR-10, 4096 for wider
            networks and CIFAR-100, 1024 for MNIST.

    Raises:
        BadInput: `beta` is outside [0, 1], or `features` is below 1.

    Example:
        >>> import localprop as lp
        >>> rule = lp.predsim(beta=0.99)

    Reference: Nøkland, Eidnes, Training Neural Networks with Local Error Signals, ICML 2019, arXiv
    1901.06656.
    """
    if not 0 <= beta <= 1:
        raise BadInput(f"beta={beta} must lie in [0, 1]: it is the share of similarity matching.")
    reference = "Nøkland and Eidnes 2019, arXiv 1901.06656"
    if beta == 1:
        return Rule(credit=LocalCredit(), aux=NoHead(), loss=SimilarityLoss(), reference=reference)
    loss: LossBuilder = TaskLoss()
    if beta:
        loss = Terms((Term(SimilarityLoss(), beta), Term(TaskLoss(), 1 - beta)))
    return Rule(credit=LocalCredit(), aux=PooledHead(features), loss=loss, reference=reference)
