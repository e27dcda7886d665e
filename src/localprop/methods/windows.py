"""Overlapping losses (Laskin et al., 2020, arXiv 2012.03837; LoCo, 2020, arXiv 2008.01342)."""

from __future__ import annotations

from dataclasses import dataclass

from localprop.arguments import check_arguments
from localprop.errors import check
from localprop.network.partition import Partition
from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.credit import make_table
from localprop.rule.rule import Rule
from localprop.rule.table import CreditTable, T

__all__ = ["WindowCredit", "windows"]


@check_arguments
@dataclass(frozen=True)
class WindowCredit:
    """Each loss trains a window of neighbouring modules. Windows may overlap.

    A module where no window ends has no loss.

    Attributes:
        size: modules per window; the last window is shorter where they do not come out even.
        stride: modules from the start of one window to the start of the next.

    Raises:
        BadInput: a size below 1, or a stride that leaves modules between windows without a loss.

    Example (four modules of three layers)::

        WindowCredit(size=2)           WindowCredit(size=2, stride=2)
        loss0 ...|...|...|...          loss0 ...|...|...|...
        loss1 TTT|TTT|...|...          loss1 TTT|TTT|...|...
        loss2 ...|TTT|TTT|...          loss2 ...|...|...|...
        loss3 ...|...|TTT|TTT          loss3 ...|...|TTT|TTT
    """

    size: int = 2
    stride: int = 1

    def __post_init__(self) -> None:
        problems = [f"size={self.size} must be 1 or more modules."] if self.size < 1 else []
        if not 1 <= self.stride <= max(self.size, 1):
            problems.append(
                f"stride={self.stride} must lie in 1..size, or modules between windows would have "
                "no loss."
            )
        check(problems)

    def __call__(self, partition: Partition) -> CreditTable:
        count = len(partition.modules)
        windows: dict[int, range] = {}  # by the module that a window ends with
        for start in range(0, count, self.stride):
            window = range(start, min(start + self.size, count))
            # Several windows may be cut off by the end of the network: the first is the longest.
            windows.setdefault(window[-1], window)
        return make_table(
            partition, lambda loss, layer, module: T if module in windows.get(loss, ()) else None
        )


@check_arguments
def windows(
    size: int = 2,
    stride: int = 1,
    aux: AuxBuilder = Head(),  # noqa: B008 - parts are frozen
) -> Rule:
    """Overlapping local losses: each trains a window of neighbouring modules.

    Most modules learn from several losses.

    Equations, with W_k the modules in the window that ends with module k::

        gradient of f_j = sum over the windows W_k that hold j of dL_k / df_j
        gradient of a_k = dL_k / da_k

    Credit (size=2)::

        loss0 ...|...|...|...
        loss1 TTT|TTT|...|...
        loss2 ...|TTT|TTT|...
        loss3 ...|...|TTT|TTT

    From the two papers this method takes which loss trains which modules. LoCo itself is
    self-supervised: its windows share a stage of the network and its losses contrast views. Here
    the losses are supervised, as in local parallelism. size=1 is `greedy`, and a window as large as
    the network is end-to-end training. stride=size cuts the network into fewer, larger modules.
    Sizes and heads of either paper are not known: one module of overlap and InfoPro's 1c2f head are
    our reading.

    Args:
        size: modules per window.
        stride: modules from the start of one window to the start of the next.
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.windows(size=3)

    Reference: Laskin et al., Parallel Training of Deep Networks with Local Updates, 2020, arXiv
    2012.03837; Xiong, Ren, Urtasun, LoCo: Local Contrastive Representation Learning, NeurIPS 2020,
    arXiv 2008.01342.
    """
    reference = "Laskin et al. 2020, arXiv 2012.03837; Xiong et al. 2020, arXiv 2008.01342"
    return Rule(credit=WindowCredit(size=size, stride=stride), aux=aux, reference=reference)
