"""Interlocking backpropagation (Gomez et al., JMLR 2022, arXiv 2010.04116)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from localprop.arguments import check_arguments
from localprop.errors import check
from localprop.models.resnet import init_convs
from localprop.network.partition import Partition
from localprop.rule.attach import AttachPoint
from localprop.rule.auxiliary import AuxBuilder, Head, find_width_problems, pool_or_norm
from localprop.rule.credit import find_combination_problems, make_table
from localprop.rule.rule import Rule
from localprop.rule.table import PASS, CreditTable, Entry, T

__all__ = ["ConvHead", "InterlockingCredit", "interlocking"]


@check_arguments
@dataclass(frozen=True)
class InterlockingCredit:
    """Each module is trained by the loss `wise - 1` modules ahead.

    The gradient of that loss passes through the modules between without training them.

    Attributes:
        wise: how many modules a gradient travels through. 1 is local, 2 pairwise, and the number of
            modules end-to-end.
        combine: the losses that train a module: the farthest one "only" (the published rule), or
            the "sum" or "mean" of all losses from its own to the farthest one.

    Raises:
        BadInput: `wise` is below 1, or `combine` is an unknown word.

    Example (four modules of three layers)::

        InterlockingCredit(wise=2)     InterlockingCredit(wise=2, combine="sum")
        loss0 ...|...|...|...          loss0 TTT|...|...|...
        loss1 TTT|ppp|...|...          loss1 TTT|TTT|...|...
        loss2 ...|TTT|ppp|...          loss2 ...|TTT|TTT|...
        loss3 ...|...|TTT|TTT          loss3 ...|...|TTT|TTT
    """

    wise: int = 2
    combine: str = "only"

    def __post_init__(self) -> None:
        problems = [f"wise={self.wise} must be 1 or more modules."] if self.wise < 1 else []
        check([*problems, *find_combination_problems(self.combine)])

    def __call__(self, partition: Partition) -> CreditTable:
        last = len(partition.modules) - 1

        def make_entry(k: int, layer: int, module: int) -> Entry | None:
            farthest = min(module + self.wise - 1, last)
            if not module <= k <= farthest:
                return None
            if self.combine == "only":
                return T if k == farthest else PASS
            if self.combine == "mean":
                return Entry(train=True, weight=1 / (farthest - module + 1))
            return T

        return make_table(partition, make_entry)


@check_arguments
@dataclass(frozen=True)
class ConvHead:
    """Interlocking's auxiliary network: 3x3 convolutions, a global average, one linear layer.

    Convolutions have stride 1, a bias, BatchNorm and ReLU. Features that are not maps skip them,
    which is our reading.

    Attributes:
        convs: the width of each convolution.
        norm: whether BatchNorm stands before each ReLU.

    Raises:
        BadInput: a width is below 1.

    Example (the example script's conv128_bn_conv64_bn_gbpl_fc on 128 channels, 222,410 parameters
    for 10 classes)::

        (N, 128, H, W) -> conv 128->128 -> conv 128->64 -> average -> (N, classes)

    Source: Gomez et al., Interlocking Backpropagation, JMLR 23(171), 2022, arXiv 2010.04116,
    official code.
    """

    convs: tuple[int, ...] = (128, 64)
    norm: bool = True

    def __post_init__(self) -> None:
        check(find_width_problems("ConvHead", "convs", self.convs))

    def __call__(self, point: AttachPoint) -> nn.Module:
        body, width = list[nn.Module](), point.width()
        for wide in self.convs if point.is_map() else ():
            norm = [nn.BatchNorm2d(wide)] if self.norm else []
            body += [nn.Conv2d(width, wide, 3, padding=1), *norm, nn.ReLU(inplace=True)]
            width = wide
        head = nn.Sequential(*body, pool_or_norm(point, width), nn.Linear(width, point.outputs))
        init_convs(head)
        return head


@check_arguments
def interlocking(
    wise: int = 2,
    combine: str = "only",
    aux: AuxBuilder = Head(),  # noqa: B008 - builders are frozen
) -> Rule:
    """Interlocking backpropagation: only the loss `wise - 1` modules ahead trains a module.

    Equations, with e_k = min(k + wise - 1, K)::

        gradient of f_k = dL_{e_k} / df_k                           combine="only", the paper's
                        = sum over j = k..e_k of dL_j / df_k        combine="sum"
                        = mean over j = k..e_k of dL_j / df_k       combine="mean"
        gradient of a_k = dL_k / da_k

    Credit (wise=2)::

        loss0 ...|...|...|...
        loss1 TTT|ppp|...|...
        loss2 ...|TTT|ppp|...
        loss3 ...|...|TTT|TTT

    The gradient of a loss passes through the modules between without touching their parameters.
    `wise=1` is `greedy`, `wise=2` is the paper's "pairwise", and `wise=K` is end-to-end. (The
    official code's communication distance is wise - 1.) The official tests also use the sum and the
    mean of a module's own loss and the next one's. The published runs do not. `combine` offers both
    for any `wise`.

    Args:
        wise: n, how many modules a gradient travels through.
        combine: the losses that train a module: the farthest one "only", or the "sum" or "mean" of
            all losses from its own to the farthest one.
        aux: the auxiliary network. The default is 1c2f as in the other methods, so that results
            compare. `ConvHead()` is the official example's. The paper does not state the auxiliary
            networks of its large ResNets.

    Raises:
        BadInput: a value that `InterlockingCredit` does not accept.

    Example:
        >>> import localprop as lp
        >>> rule = lp.interlocking(wise=3)

    Reference: Gomez, Key, Perlin, Gou, Frosst, Dean, Gal, Interlocking Backpropagation, JMLR
    23(171), 2022, arXiv 2010.04116.
    """
    return Rule(
        credit=InterlockingCredit(wise, combine),
        aux=aux,
        reference="Gomez et al. 2022, arXiv 2010.04116",
    )
