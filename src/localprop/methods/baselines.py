"""Baselines: end-to-end backpropagation and greedy local learning."""

from __future__ import annotations

from dataclasses import dataclass

from localprop.arguments import check_arguments
from localprop.network.partition import Partition
from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.credit import LocalCredit, make_table
from localprop.rule.rule import Rule
from localprop.rule.table import CreditTable, T

__all__ = ["EndToEndCredit", "end_to_end", "greedy"]


@dataclass(frozen=True)
class EndToEndCredit:
    """The last loss trains all layers. There is no other loss.

    Example:
        >>> rule = lp.Rule(lp.EndToEndCredit())
    """

    def __call__(self, partition: Partition) -> CreditTable:
        last = len(partition.modules) - 1
        return make_table(partition, lambda k, layer, module: T if k == last else None)


def end_to_end() -> Rule:
    """Ordinary backpropagation: one loss trains all layers.

    Equations::

        gradient of every parameter p = dL_K / dp

    Credit::

        loss0 ...|...|...|...
        loss1 ...|...|...|...
        loss2 ...|...|...|...
        loss3 TTT|TTT|TTT|TTT

    With `Learner(..., recompute=True)` it is gradient checkpointing: each layer runs again before
    its backward (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv
    1604.06174).

    Example:
        >>> import localprop as lp
        >>> rule = lp.end_to_end()

    Reference: Rumelhart, Hinton, Williams, Learning representations by back-propagating errors,
    Nature 323, 1986.
    """
    return Rule(credit=EndToEndCredit(), reference="Rumelhart et al. 1986")


@check_arguments
def greedy(aux: AuxBuilder = Head()) -> Rule:  # noqa: B008 - builders are frozen
    """Greedy (decoupled) local learning: each module is trained by its own loss alone.

    Equations::

        h_k = f_k(sg(h_{k-1}))
        gradient of f_k and a_k = dL_k

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    All modules learn from every batch. A module reads the features that the modules before it
    compute with their weights from before the batch. The default auxiliary network, 1c2f, is the
    head of the InfoPro family. `Head(convs=0, linears=1)` (0c1f) gives the field's "Greedy SL".

    Args:
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.greedy(aux=lp.Head(convs=0, linears=1))

    Reference: Belilovsky, Eickenberg, Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, arXiv
    1901.08164.
    """
    return Rule(credit=LocalCredit(), aux=aux, reference="Belilovsky et al. 2020, arXiv 1901.08164")
