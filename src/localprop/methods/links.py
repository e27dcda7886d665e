"""Methods that differ in how far an error travels: over cuts, windows and modules."""

from __future__ import annotations

from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.credit import BackwardLinks, Interlocked
from localprop.rule.rule import Rule


def backlink(
    layers: int = 1,
    weight: float = 1.0,
    unit: str = "layers",
    spill: bool = False,
    combine: str = "sum",
    aux: AuxBuilder = Head(),  # noqa: B008 - parts are frozen
) -> Rule:
    """BackLink: the next module's loss also trains the last layers of a module, over a backward link.

    Equations, with T_k the last `layers` layers of module k and F_k the others::

        gradient of F_k = dL_k / dF_k
        gradient of T_k = dL_k / dT_k + weight * dL_{k+1} / dT_k                  combine="sum"
                        = (dL_k / dT_k + weight * dL_{k+1} / dT_k) / 2            combine="mean"
                        = weight * dL_{k+1} / dT_k                                combine="only"
        gradient of a_k = dL_k / da_k

    Credit (layers=1)::

        loss0 TTT|...|...|...
        loss1 ..T|TTT|...|...
        loss2 ...|..T|TTT|...
        loss3 ...|...|..T|TTT

    Our reading: the paper's abstract says that errors flow into the module before over a restricted length; no code is
    known. The unit of the length (here a layer: a residual block), its values, a weight and the heads are not stated there,
    so the link adds to the module's own loss, stops within that module, and has weight 1 and InfoPro's 1c2f heads.

    The abstract allows other readings, which the arguments reach. `unit="convs"` counts weights on the longest path instead
    of layers; a layer is trained whole, so a link of one convolution into a block of two trains both. `spill=True` goes on
    over further cuts. A number of layers larger than any module is the full link: :func:`interlocking` of 2 modules, their
    sum or, with `combine="only"`, the published one. A module that ran the linked layers again as its own first ones would
    have the default's gradients, at the cost of running them twice. Left out: a link that hands on what the module ahead has
    itself received.

    Args:
        layers: the length of the link, in layers of the module before; 0 is :func:`greedy`.
        weight: what the linked error is multiplied by.
        unit: what the length counts, "layers" or "convs".
        spill: whether a link longer than the module before goes on into those before that.
        combine: what the linked layers get, the "sum" or "mean" of their own and the linked error, or the linked one "only".
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.backlink(layers=3)

    Reference: Guo, Fouda, Eltawil, Salama, BackLink: Supervised Local Training with Backward Links, IEEE TAI 2023,
    arXiv 2205.07141.
    """
    credit = BackwardLinks(layers, weight, unit, spill, combine)
    return Rule(credit=credit, aux=aux, reference="Guo et al. 2023, arXiv 2205.07141")


def interlocking(wise: int = 2, combine: str = "only", aux: AuxBuilder = Head()) -> Rule:  # noqa: B008
    """Interlocking backpropagation: a module is trained by the loss `wise - 1` modules ahead, and only by that.

    Equations, with e_k = min(k + wise - 1, K)::

        gradient of f_k = dL_{e_k} / df_k                                         combine="only", the paper's
                        = sum over j = k..e_k of dL_j / df_k                      combine="sum"
                        = mean over j = k..e_k of dL_j / df_k                     combine="mean"
        gradient of a_k = dL_k / da_k

    Credit (wise=2)::

        loss0 ...|...|...|...
        loss1 TTT|ppp|...|...
        loss2 ...|TTT|ppp|...
        loss3 ...|...|TTT|TTT

    Errors pass the modules between without touching their parameters. wise=1 is :func:`greedy`, wise=2 the paper's
    "pairwise", wise=K is end-to-end. (The official code's communication distance is wise - 1.) Its tests also hold a sum
    and a mean of a module's own loss and the next one's, which the published runs do not use: `combine`, for any wise.

    Args:
        wise: n, how many modules an error travels.
        combine: what trains a module: the farthest loss "only", or the "sum" or "mean" of all from its own to that one.
        aux: the auxiliary network; the default is that of the other methods, 1c2f, so that they compare. The official
            example's is `ConvHead()`; the paper's own for its large ResNets are not stated.

    Example:
        >>> import localprop as lp
        >>> rule = lp.interlocking(wise=3)

    Reference: Gomez, Key, Perlin, Gou, Frosst, Dean, Gal, Interlocking Backpropagation, JMLR 23(171), 2022,
    arXiv 2010.04116.
    """
    return Rule(credit=Interlocked(wise, combine), aux=aux, reference="Gomez et al. 2022, arXiv 2010.04116")
