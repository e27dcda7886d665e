"""Methods that differ in how far an error travels: over cuts, windows and modules."""

from __future__ import annotations

from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.credit import BackwardLinks, Interlocked
from localprop.rule.rule import Rule


def backlink(layers: int = 1, weight: float = 1.0, aux: AuxBuilder = Head()) -> Rule:  # noqa: B008
    """BackLink: the next module's loss also trains the last layers of a module, over a backward link.

    Equations, with T_k the last `layers` layers of module k and F_k the others::

        gradient of F_k = dL_k / dF_k
        gradient of T_k = dL_k / dT_k + weight * dL_{k+1} / dT_k
        gradient of a_k = dL_k / da_k

    Credit (layers=1)::

        loss0 TTT|...|...|...
        loss1 ..T|TTT|...|...
        loss2 ...|..T|TTT|...
        loss3 ...|...|..T|TTT

    Our reading: the paper's abstract says that errors flow into the module before over a restricted length; no code is
    known. The unit of the length (here a layer: a residual block), its values, a weight and the heads are not stated there,
    so the link adds to the module's own loss, stops within that module, and has weight 1 and InfoPro's 1c2f heads.

    Args:
        layers: the length of the link, in layers of the module before; 0 is :func:`greedy`.
        weight: what the linked error is multiplied by.
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.backlink(layers=3)

    Reference: Guo, Fouda, Eltawil, Salama, BackLink: Supervised Local Training with Backward Links, IEEE TAI 2023,
    arXiv 2205.07141.
    """
    credit = BackwardLinks(layers=layers, weight=weight)
    return Rule(credit=credit, aux=aux, reference="Guo et al. 2023, arXiv 2205.07141")


def interlocking(wise: int = 2, aux: AuxBuilder = Head()) -> Rule:  # noqa: B008
    """Interlocking backpropagation: a module is trained by the loss `wise - 1` modules ahead, and only by that.

    Equations::

        gradient of f_k = dL_{min(k + wise - 1, K)} / df_k
        gradient of a_k = dL_k / da_k

    Credit (wise=2)::

        loss0 ...|...|...|...
        loss1 TTT|ppp|...|...
        loss2 ...|TTT|ppp|...
        loss3 ...|...|TTT|TTT

    Errors pass the modules between without touching their parameters. wise=1 is :func:`greedy`, wise=2 the paper's
    "pairwise", wise=K is end-to-end. (The official code's communication distance is wise - 1.)

    Args:
        wise: n, how many modules an error travels.
        aux: the auxiliary network; the paper's own for its large ResNets are not stated.

    Example:
        >>> import localprop as lp
        >>> rule = lp.interlocking(wise=3)

    Reference: Gomez, Key, Perlin, Gou, Frosst, Dean, Gal, Interlocking Backpropagation, JMLR 23(171), 2022,
    arXiv 2010.04116.
    """
    return Rule(credit=Interlocked(wise=wise), aux=aux, reference="Gomez et al. 2022, arXiv 2010.04116")
