"""Methods that help local modules from outside: context, and auxiliary networks that look like the network ahead."""

from __future__ import annotations

from localprop.rule.auxiliary import AuxBuilder, Head, SampledLayers
from localprop.rule.context import ContextSupply
from localprop.rule.credit import Own
from localprop.rule.rule import Rule


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
