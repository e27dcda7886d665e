"""DGL: decoupled greedy learning (Belilovsky et al., ICML 2020, arXiv 1901.08164)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from localprop.arguments import check_arguments
from localprop.errors import check
from localprop.models.resnet import init_convs, init_linears
from localprop.rule.attach import AttachPoint
from localprop.rule.auxiliary import AuxBuilder, pool_or_norm
from localprop.rule.credit import LocalCredit
from localprop.rule.rule import Rule

__all__ = ["MlpSrHead", "dgl"]


@check_arguments
@dataclass(frozen=True)
class MlpSrHead:
    """DGL's "MLP-SR": pool to a quarter, 1x1 convolutions, pool to 2x2, linear layers.

    Convolutions have no bias. Convolutions and all linear layers but the last are followed by
    BatchNorm and ReLU. Maps that are smaller than `pooled` after the first pool stay as they are.

    Features that are not maps skip the convolutions. If the network has an output per token, the
    head classifies each token and uses LayerNorm instead of BatchNorm. Both are our reading.

    Attributes:
        convs: the number of 1x1 convolutions.
        linears: the number of linear layers before the last.
        bias: whether these linear layers have a bias.
        size: the side of the maps after the first pool. 0: a quarter of the side, rounded up.
        width: the channels of the convolutions. 0: the channels of the features.
        pooled: the side of the maps after the second pool.
        hidden: the width of the linear layers. 0: the size of the second pool's output, which is
            four numbers per channel for `pooled=2`.
        std: the standard deviation of the normal distribution that the weights of linear layers
            are drawn from, with biases of 0. 0: both are initialised as in PyTorch.

    Raises:
        BadInput: a number is negative, or `pooled` is below 1.

    Example (the published head of a 16-channel module)::

        (N, 16, 32, 32) -> 8x8 -> three times conv 1x1 16->16 -> 2x2 -> (N, 64) -> 64 -> 64 -> 64
            -> (N, classes)

    `localprop.dgl` draws the linear layers with DGL's std of 0.01. AugLocal's re-implementation is
    `MlpSrHead(linears=2, bias=False)`, that of MAN++ is
    `MlpSrHead(size=8, width=128, pooled=1, hidden=512)`.

    Source: Belilovsky, Eickenberg, Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, arXiv
    1901.08164, official code.
    """

    convs: int = 3
    linears: int = 3
    bias: bool = True
    size: int = 0
    width: int = 0
    pooled: int = 2
    hidden: int = 0
    std: float = 0.0

    def __post_init__(self) -> None:
        limits: list[tuple[str, float, int]] = [
            ("convs", self.convs, 0),
            ("linears", self.linears, 0),
            ("size", self.size, 0),
            ("width", self.width, 0),
            ("pooled", self.pooled, 1),
            ("hidden", self.hidden, 0),
            ("std", self.std, 0),
        ]
        check(
            f"MlpSrHead({name}={value}): {name} must be {least} or more."
            for name, value, least in limits
            if value < least
        )

    def __call__(self, point: AttachPoint) -> nn.Module:
        body, width = self._build_front(point)
        each_token = len(point.layers.output_shape) > 2
        for _ in range(self.linears):
            wide = self.hidden or width
            norm = nn.LayerNorm(wide) if each_token else nn.BatchNorm1d(wide)
            body += [nn.Linear(width, wide, bias=self.bias), norm, nn.ReLU()]
            width = wide
        head = nn.Sequential(*body, nn.Linear(width, point.outputs))
        init_convs(head)
        if self.std:
            init_linears(head, self.std)
        return head

    def _build_front(self, point: AttachPoint) -> tuple[list[nn.Module], int]:
        """The modules before the linear layers, and the width of their output."""
        width = point.width()
        if not point.is_map():
            return [pool_or_norm(point, width)], width
        small = [self.size or -(-side // 4) for side in point.features[2:]]
        body = _build_pool(point.features[2:], small)
        for _ in range(self.convs):
            wide = self.width or width
            body += [
                nn.Conv2d(width, wide, 1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(inplace=True),
            ]
            width = wide
        pooled = [min(self.pooled, side) for side in small]
        body += [*_build_pool(small, pooled), nn.Flatten()]
        return body, width * pooled[0] * pooled[1]


def _build_pool(before: Sequence[int], after: Sequence[int]) -> list[nn.Module]:
    """An adaptive average pool from one size to another, or nothing if the sizes are equal."""
    return [] if list(before) == list(after) else [nn.AdaptiveAvgPool2d((after[0], after[1]))]


@check_arguments
def dgl(aux: AuxBuilder = MlpSrHead(std=0.01)) -> Rule:
    """DGL: `greedy` with the auxiliary networks of its paper, which cost few operations.

    Equations::

        h_k = f_k(sg(h_{k-1}))
        gradient of f_k and a_k = dL_k

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The default is the paper's "MLP-SR" with three linear layers with bias. For its VGGs, the
    paper's official code draws their weights from N(0, 0.01 squared) and sets their biases to 0.
    For its ResNet-152 they keep PyTorch's initial values: `MlpSrHead()`. AugLocal's code
    compares with `MlpSrHead(linears=2, bias=False)`. Other papers also call `greedy` with 1c2f
    heads DGL, so name the head beside a result.

    Args:
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.dgl(aux=lp.MlpSrHead(linears=2, bias=False))

    Reference: Belilovsky, Eickenberg, Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, arXiv
    1901.08164.
    """
    return Rule(credit=LocalCredit(), aux=aux, reference="Belilovsky et al. 2020, arXiv 1901.08164")
