"""Methods that divide modules into groups of neurons."""

from __future__ import annotations

from localprop.rule.auxiliary import AuxBuilder
from localprop.rule.groups import GroupCrossEntropy, GroupHeads, WideningHead
from localprop.rule.rule import Rule


def gn_dgl(
    groups: int = 2,
    diversity: float = 0.5,
    temperature: float = 3.0,
    aux: AuxBuilder = WideningHead(),  # noqa: B008 - parts are frozen
) -> Rule:
    """GN-DGL: greedy local learning in which groups of a module's channels have losses of their own, too.

    Equations, with h_k^(g) the module's output whose channels outside group g are constants, and D how much the groups agree
    on wrong classes (:class:`GroupCrossEntropy`)::

        L_k = sum over g of CE(a_k^g(h_k^(g)), y) + diversity * D(a_k^1, .., a_k^G)
        gradient of f_k and a_k = dL_k

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The network is a grouped one, whose convolutions but each module's first keep the groups apart; there a group's error
    stays within the group. All K modules of the paper have group heads, and the final classifier learns apart on constant
    features: it is a layer of its own in these networks, and here the last module, so that K of the paper is K + 1 modules.
    On other networks the groups are only those of the errors. Left out: predictions by an ensemble of all heads.

    Args:
        groups: G.
        diversity: the weight of D.
        temperature: of the softmax in D.
        aux: the head of each group.

    Example:
        >>> import localprop as lp
        >>> rule = lp.gn_dgl(groups=4)

    Reference: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023, arXiv 2301.07635.
    """
    loss = GroupCrossEntropy(diversity, temperature)
    return Rule(aux=GroupHeads(groups, aux), loss=loss, reference="Patel et al. 2023, arXiv 2301.07635")
