"""ContSup: greedy local learning with context supply (Yu et al., 2023, arXiv 2312.07636)."""

from __future__ import annotations

from localprop.arguments import check_arguments
from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.context import ContextSupply
from localprop.rule.credit import LocalCredit
from localprop.rule.losses import LossBuilder, TaskLoss
from localprop.rule.rule import Rule

__all__ = ["contsup"]


@check_arguments
def contsup(
    input: bool = True,
    previous: int = 1,
    aux: AuxBuilder = Head(),  # noqa: B008 - parts are frozen
    loss: LossBuilder = TaskLoss(),  # noqa: B008
) -> Rule:
    """ContSup: greedy local learning whose modules receive context, encodings of earlier inputs.

    Equations, with encoders M that the receiver's loss trains and that belong to the deployed
    network::

        E:   u_k = sg(h_{k-1}) + M_k(x)
        Rn:  u_k = sg(h_{k-1}) + sum over j = 1..n of M_{k,j}(sg(u_{k-j}))        u_1 = x
        RnE: both; Rn then leaves x itself out
        h_k = f_k(u_k)
        gradient of f_k, M_k and a_k = dL_k

    Credit: that of `greedy`; an encoder has the credit of the module that receives from it::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The local loss looks at h_k, before context is added. The default is the mode R1E with
    cross-entropy and no decoder. The contrastive form is
    `contsup(aux=Head(outputs=128), loss=ContrastiveLoss())`. The form with a decoder has the loss
    and the weights of `infopro`: `contsup(loss=infopro(...).loss)`. For ResNet-110 in 4 modules on
    SVHN the official code gives the weights 5, 0 and 0.5, 0, with which no local module would learn
    the classes. InfoPro's 5, 0 and 0.5, 1 are surely meant.

    Args:
        input: E, supply the network's input.
        previous: n, supply the inputs of the n modules before.
        aux: the auxiliary network.
        loss: the local loss.

    Example:
        >>> import localprop as lp
        >>> rule = lp.contsup(input=False, previous=4)         # the paper's R4
        >>> rule = lp.contsup(aux=lp.Head(outputs=128), loss=lp.ContrastiveLoss())

    Reference: Yu, Zhang, Ma, Wang, Li, Go beyond End-to-End Training: Boosting Greedy Local
    Learning with Context Supply, 2023, arXiv 2312.07636.
    """
    return Rule(
        credit=LocalCredit(),
        aux=aux,
        loss=loss,
        context=ContextSupply(input=input, previous=previous),
        reference="Yu et al. 2023, arXiv 2312.07636",
    )
