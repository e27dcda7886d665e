"""Methods whose local losses train their own modules, and the baseline that has none."""

from __future__ import annotations

from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.credit import EndToEnd, Own
from localprop.rule.heads import MlpSrHead
from localprop.rule.rule import Rule


def end_to_end() -> Rule:
    """Ordinary backpropagation: one loss trains all layers.

    Equations::

        gradient of every parameter p = dL_K / dp

    Credit::

        loss0 ...|...|...|...
        loss1 ...|...|...|...
        loss2 ...|...|...|...
        loss3 TTT|TTT|TTT|TTT

    With `Learner(..., recompute=True)` it is gradient checkpointing: segments are run again before their backward
    (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv 1604.06174).

    Example:
        >>> import localprop as lp
        >>> rule = lp.end_to_end()

    Reference: Rumelhart, Hinton, Williams, Learning representations by back-propagating errors, Nature 323, 1986.
    """
    return Rule(credit=EndToEnd(), reference="Rumelhart et al. 1986")


def greedy(aux: AuxBuilder = Head()) -> Rule:  # noqa: B008 - parts are frozen
    """Greedy (decoupled) local learning: every module has a loss of its own, and nothing else trains it.

    Equations::

        h_k = f_k(sg(h_{k-1}))
        gradient of f_k and a_k = dL_k

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    All modules learn from every batch, with the weights from before it. `Head(convs=0, linears=1)` is the field's
    "Greedy SL" (0c1f), the default 1c2f is the head of the InfoPro family.

    Args:
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.greedy(aux=lp.Head(convs=0, linears=1))

    Reference: Belilovsky, Eickenberg, Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, arXiv 1901.08164.
    """
    return Rule(credit=Own(), aux=aux, reference="Belilovsky et al. 2020, arXiv 1901.08164")


def dgl(aux: AuxBuilder = MlpSrHead(std=0.01)) -> Rule:  # noqa: B008
    """DGL: :func:`greedy` with the auxiliary networks of its paper, which cost few operations.

    Equations::

        h_k = f_k(sg(h_{k-1}))
        gradient of f_k and a_k = dL_k

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The default is the paper's "MLP-SR" with three linear layers with bias, as in its official code, which draws linear
    weights from N(0, 0.01 squared) and makes their biases 0; AugLocal's code compares
    with `MlpSrHead(linears=2, bias=False)`. Others call :func:`greedy` with 1c2f heads DGL, too: name the head with a result.

    Args:
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.dgl(aux=lp.MlpSrHead(linears=2, bias=False))

    Reference: Belilovsky, Eickenberg, Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, arXiv 1901.08164.
    """
    return Rule(credit=Own(), aux=aux, reference="Belilovsky et al. 2020, arXiv 1901.08164")
