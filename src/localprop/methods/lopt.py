"""LoPT: local post-training of language models (Shi et al., 2026, arXiv 2605.04913)."""

from __future__ import annotations

from localprop.arguments import check_arguments
from localprop.methods.pathak import FeatureReconstruction
from localprop.rule.auxiliary import NoHead
from localprop.rule.rule import Rule

__all__ = ["lopt"]


@check_arguments
def lopt(weight: float = 10.0, hidden: int = 0) -> Rule:
    """LoPT: post-training; the task trains the last module, the others reconstruct their input.

    Equations, with d_k a decoder (LayerNorm and a bottleneck)::

        L_k = weight / (K - 1) * MSE(d_k(h_k), sg(h_{k-1}))        k < K
        gradient of f_k and d_k = dL_k

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The first module of a language model reconstructs the token embeddings, as constants. The paper
    has 2 modules, cut in the middle. The official code counts blocks: 8 become 4 and 4, and the
    embedding goes with the first. `modules=2` counts the embedding as a layer, so name the cuts
    instead. Local modules never see the targets, so use the method on pretrained networks. The
    paper has no convolutional networks; for them the decoder is our reading (see
    `FeatureReconstruction`).

    Args:
        weight: of the mean of all reconstructions.
        hidden: the width of the bottleneck; 0 for a quarter of the features' width.

    Example:
        >>> import localprop as lp
        >>> rule = lp.lopt()

    Reference: Shi, Han, Wang, Wang, Yang, Su, Rethinking Local Learning: A Cheaper and Faster
    Recipe for LLM Post-Training, 2026, arXiv 2605.04913.
    """
    loss = FeatureReconstruction(weight, hidden, shared=True)
    return Rule(aux=NoHead(), loss=loss, reference="Shi et al. 2026, arXiv 2605.04913")
