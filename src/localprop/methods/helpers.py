"""Methods that help local modules from outside: context, and auxiliary networks that look like the network ahead."""

from __future__ import annotations

from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.context import ContextSupply
from localprop.rule.credit import Own
from localprop.rule.losses import CrossEntropy, LossBuilder
from localprop.rule.rule import Rule
from localprop.rule.sampled import SampledLayers


def contsup(
    input: bool = True,
    previous: int = 1,
    aux: AuxBuilder = Head(),  # noqa: B008 - parts are frozen
    loss: LossBuilder = CrossEntropy(),  # noqa: B008
) -> Rule:
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

    The local loss looks at h_k, before context is added. The default is the mode R1E with cross-entropy and no decoder. The
    contrastive form is `contsup(aux=Head(outputs=128), loss=Contrastive())`, the one with a decoder has the loss and the
    weights of :func:`infopro`: `contsup(loss=infopro(...).loss)`. Its code gives 5, 0 and 0.5, 0 for ResNet-110 in 4 modules on
    SVHN, where no local module would learn the classes: surely InfoPro's 5, 0 and 0.5, 1.

    Args:
        input: E, supply the network's input.
        previous: n, supply the inputs of the n modules before.
        aux: the auxiliary network.
        loss: the local loss.

    Example:
        >>> import localprop as lp
        >>> rule = lp.contsup(input=False, previous=4)         # the paper's R4
        >>> rule = lp.contsup(aux=lp.Head(outputs=128), loss=lp.Contrastive())

    Reference: Yu, Zhang, Ma, Wang, Li, Go beyond End-to-End Training: Boosting Greedy Local Learning with Context Supply,
    2023, arXiv 2312.07636.
    """
    context = ContextSupply(input=input, previous=previous)
    return Rule(credit=Own(), aux=aux, loss=loss, context=context, reference="Yu et al. 2023, arXiv 2312.07636")


def auglocal(depth: int = 2, pyramid: float = 0.5, joined: bool = True, unit: str = "basic") -> Rule:
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
    true loss, which K counts as one module; its ImageNet code gives every layer but the last a head (and uses no pyramid).

    Args:
        depth: d, the layers of the first auxiliary network.
        pyramid: tau, how far the depth falls towards 1.
        joined: the CIFAR form (True) or the ImageNet form (False) of the final module, and of heads of one basic block, which
            have a BatchNorm before their linear layer in the first.
        unit: what stands for a layer: a "basic" or "bottleneck" residual block, a "conv" of VGG, or a "copy" of the layer
            itself, for networks whose layers keep their shape (:class:`localprop.SampledLayers`).

    Example:
        >>> import localprop as lp
        >>> rule = lp.auglocal(depth=2)                                              # ResNet-32 and 110 on CIFAR-10
        >>> rule = lp.auglocal(depth=4, pyramid=0, joined=False)                     # ResNet-34 on ImageNet
        >>> rule = lp.auglocal(depth=4, pyramid=0, joined=False, unit="bottleneck")  # ResNet-101; "conv" for VGG-13

    Reference: Ma, Wu, Si, Tan, Scaling Supervised Local Learning with Augmented Auxiliary Networks, ICLR 2024,
    arXiv 2402.17318.
    """
    credit, aux = Own(joined=depth if joined else 0), SampledLayers(depth, pyramid, unit, norm=joined)
    return Rule(credit=credit, aux=aux, reference="Ma et al. 2024, arXiv 2402.17318")
