"""Methods whose modules reconstruct the features that they were given."""

from __future__ import annotations

from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.features import FeatureReconstruction
from localprop.rule.heads import Bare
from localprop.rule.losses import CrossEntropy
from localprop.rule.rule import Rule
from localprop.rule.terms import Term, Terms


def pathak(reconstruction: float = 1.0, task: float = 1.0, hidden: int = 0, aux: AuxBuilder = Head()) -> Rule:  # noqa: B008
    """Local learning by feature reconstruction: InfoPro whose modules reconstruct their own input and not the image.

    Equations, with d_k a decoder::

        L_k = reconstruction * MSE(d_k(h_k), sg(h_{k-1})) + task * CE(a_k(h_k), y)
        gradient of f_k, d_k and a_k = dL_k

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    Our reading: the paper's decoders, weights and error are not known (:class:`FeatureReconstruction` says which are used).

    Args:
        reconstruction: the weight of the reconstruction; positive.
        task: that of the cross-entropy.
        hidden: the decoder's inner width; 0 for a quarter of the features' channels.
        aux: the auxiliary network, of the cross-entropy alone.

    Example:
        >>> import localprop as lp
        >>> rule = lp.pathak(reconstruction=5.0)

    Reference: Pathak, Zhang, Samaras, Local Learning on Transformers via Feature Reconstruction, 2022, arXiv 2212.14215.
    """
    loss = Terms((Term(FeatureReconstruction(hidden=hidden), reconstruction), Term(CrossEntropy(), task)))
    return Rule(aux=aux, loss=loss, reference="Pathak et al. 2022, arXiv 2212.14215")


def lopt(weight: float = 10.0, hidden: int = 0) -> Rule:
    """LoPT: post-training where the task trains the last module alone, and the others reconstruct their input.

    Equations, with d_k a decoder, LayerNorm and a bottleneck::

        L_k = weight / (K - 1) * MSE(d_k(h_k), sg(h_{k-1}))        k < K
        gradient of f_k and d_k = dL_k

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The first module of a language model reconstructs the token embeddings, as constants. The paper has 2 modules, cut in
    the middle; local modules never see the targets, so this is for networks that have been trained before. On convolutional
    networks, which the paper does not have, the decoder is our reading (:class:`FeatureReconstruction`).

    Args:
        weight: of the mean of all reconstructions.
        hidden: the bottleneck; 0 for a quarter of the width.

    Example:
        >>> import localprop as lp
        >>> rule = lp.lopt()

    Reference: Shi, Han, Wang, Wang, Yang, Su, Rethinking Local Learning: A Cheaper and Faster Recipe for LLM Post-Training,
    2026, arXiv 2605.04913.
    """
    loss = FeatureReconstruction(weight, hidden, shared=True)
    return Rule(aux=Bare(), loss=loss, reference="Shi et al. 2026, arXiv 2605.04913")
