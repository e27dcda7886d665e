"""The papers by name: each a short composition of parts.

In the equations h_k is the output of module k = 1..K, f_k its layers, a_k its auxiliary network, sg a stop-gradient, y the
target and L_k = loss(a_k(h_k), y); L_K is the task's loss of the network's own classifier.
"""

from __future__ import annotations

from localprop.rule.auxiliary import AuxBuilder, Head, SampledLayers
from localprop.rule.context import ContextSupply
from localprop.rule.credit import BackwardLinks, EndToEnd, Interlocked, Own
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


def contsup(input: bool = True, previous: int = 1, aux: AuxBuilder = Head()) -> Rule:  # noqa: B008
    """ContSup: greedy local learning whose modules receive context, encodings of earlier inputs.

    Equations, with encoders M trained by the receiver's loss and part of the deployed network::

        E:   u_k = sg(h_{k-1}) + M_k(x)
        Rn:  u_k = sg(h_{k-1}) + sum over j = 1..n of M_{k,j}(sg(u_{k-j}))        u_1 = x
        RnE: both; x itself is left out of Rn
        h_k = f_k(u_k)
        gradient of f_k, M_k and a_k = dL_k

    Credit: that of :func:`greedy`; an encoder has the credit of the module that receives from it::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The local loss looks at h_k, before context is added. The default is the mode R1E with cross-entropy and no decoder.

    Args:
        input: E, supply the network's input.
        previous: n, supply the inputs of the n modules before.
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.contsup(input=False, previous=4)         # the paper's R4

    Reference: Yu, Zhang, Ma, Wang, Li, Go beyond End-to-End Training: Boosting Greedy Local Learning with Context Supply,
    2023, arXiv 2312.07636.
    """
    context = ContextSupply(input=input, previous=previous)
    return Rule(credit=Own(), aux=aux, context=context, reference="Yu et al. 2023, arXiv 2312.07636")


def auglocal(depth: int = 2, pyramid: float = 0.5, joined: bool = True) -> Rule:
    """AugLocal: greedy local learning whose auxiliary networks look like the layers that follow.

    Equations: those of :func:`greedy`, with a_k made of d_k fresh layers shaped like the layers p_i after layer l of n::

        d_k = max(1, round(depth * (1 - r) + r)),   r = pyramid * k / (K - 2),   k = 0..K-2
        p_i = round(l + (n - 1 - l) / d_k * i),     i = 1..d_k

    Credit (joined, depth=1)::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|...|...
        loss3 ...|...|TTT|TTT

    The paper trains layer-wise: `modules` = the number of layers. Its CIFAR code joins the last depth + 1 layers under the
    true loss, its ImageNet code gives every layer but the last a head (and uses no pyramid).

    Args:
        depth: d, the layers of the first auxiliary network.
        pyramid: tau, how far the depth falls towards 1.
        joined: the CIFAR form (True) or the ImageNet form (False) of the final module.

    Example:
        >>> import localprop as lp
        >>> rule = lp.auglocal(depth=2)                         # CIFAR; auglocal(4, pyramid=0, joined=False) for ImageNet

    Reference: Ma, Wu, Si, Tan, Scaling Supervised Local Learning with Augmented Auxiliary Networks, ICLR 2024,
    arXiv 2402.17318.
    """
    credit = Own(joined=depth if joined else 0)
    return Rule(credit=credit, aux=SampledLayers(depth, pyramid), reference="Ma et al. 2024, arXiv 2402.17318")


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
