"""Methods whose auxiliary networks hold parameters of the network ahead."""

from __future__ import annotations

from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.copied import NextLayerHead, SharedReadout, ThroughNextLayer
from localprop.rule.heads import MlpSrHead
from localprop.rule.losses import CrossEntropy, LossBuilder
from localprop.rule.rule import Rule


def man(
    decay: float = 0.995,
    aux: AuxBuilder = Head(),  # noqa: B008 - parts are frozen
    loss: LossBuilder = CrossEntropy(),  # noqa: B008
) -> Rule:
    """MAN: momentum auxiliary network; a head looks through an average of the next module's first layer.

    Equations, with g the next module's first layer, LB and EMA copies of it with weights of their own, and a_k a head::

        z_k = LB_k(h_k) + EMA_k(h_k)
        L_k = CE(a_k(z_k), y)                          or another loss of z_k, as reconstruction(z_k) + CE(a_k(z_k), y)
        gradient of f_k, a_k and LB_k = dL_k
        EMA_k <- decay * EMA_k + (1 - decay) * g        once a step, with g as it is before its step

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    As in the code, LB and EMA begin apart from g, and EMA's BatchNorm statistics are its own. The tables' "16" modules of
    ResNet-32 are 15, "55" of ResNet-110 are 54: the stem belongs to the first module. The official code holds InfoPro with MAN
    alone, whose decoder sees z_k, too, and whose head is 2c2f; DGL with MAN is quoted in its tables, and what head it had is
    not known: 1c2f is our reading.

    Args:
        decay: m.
        aux: the head behind LB and EMA, built for features like the next layer's.
        loss: of z_k; with a decoder the learner must know how its inputs were made from pixels (`normalised=`).

    Example:
        >>> import localprop as lp
        >>> terms = lp.Terms((lp.Term(lp.PixelReconstruction(), 5.0), lp.Term(lp.CrossEntropy(), 0.5)))
        >>> rule = lp.man(aux=lp.Head(convs=2), loss=terms)          # InfoPro with MAN

    Reference: Su, Cai, Zhu, He, Xu, Guan, Si, Momentum Auxiliary Network for Supervised Local Learning, ECCV 2024,
    arXiv 2407.05623.
    """
    head = NextLayerHead(aux, decay)
    return Rule(aux=head, loss=ThroughNextLayer(loss), reference="Su et al. 2024, arXiv 2407.05623")


def man_plus(
    decay: float = 0.995,
    aux: AuxBuilder = MlpSrHead(size=8, width=128, pooled=1, hidden=512),  # noqa: B008
    loss: LossBuilder = CrossEntropy(),  # noqa: B008
) -> Rule:
    """MAN++: :func:`man` with a learned share of the trained and the averaged layer.

    Equations, with s_k one number, 1 at first::

        z_k = s_k * LB_k(h_k) + (2 - s_k) * EMA_k(h_k)
        L_k = CE(a_k(z_k), y)                          or another loss of z_k
        gradient of f_k, a_k, LB_k and s_k = dL_k
        EMA_k <- decay * EMA_k + (1 - decay) * g        once a step, with g as it is before its step

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    Here the stem is a module of its own: 16 modules of ResNet-32 and 55 of ResNet-110 are all of their layers. Left out: the
    head for ViT, which has one more trained block behind the two.

    Args:
        decay: m.
        aux: the head behind LB and EMA; the default is the code's for DGL with MAN++ on CIFAR.
        loss: of z_k; InfoPro with MAN++, as on ImageNet, has a decoder: see :func:`man`.

    Example:
        >>> import localprop as lp
        >>> rule = lp.man_plus(decay=0.99)

    Reference: Su et al., MAN++: Scaling Momentum Auxiliary Network for Supervised Local Learning in Vision Tasks, 2025,
    arXiv 2507.16279.
    """
    head = NextLayerHead(aux, decay, scaled=True)
    return Rule(aux=head, loss=ThroughNextLayer(loss), reference="Su et al. 2025, arXiv 2507.16279")


def solo(blocks: int = 2, every: int = 1, readout: str = "") -> Rule:
    """SOLO: local losses of language models that read out with the network's own last matrix, which they do not train.

    Equations, with phi_k some blocks and RMSNorm, W the network's read-out and tau_k a learned temperature::

        L_k = CE(tau_k * phi_k(h_k) sg(W)^T, y)
        gradient of f_k, phi_k and tau_k = dL_k
        gradient of W = dL_K / dW

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    Heads hold a copy of W that is refreshed after every `every`-th step. The paper has 2 or 4 modules of a language model, and
    reports that a shared read-out does not help image classification; it runs there nevertheless (:class:`SharedReadout`).

    Args:
        blocks: transformer blocks in a head.
        every: S, steps between copies; 1 in the paper's pretraining, 50 in its pipelines.
        readout: the name of W; "" for the last matrix (outputs, width) of the last layer.

    Example:
        >>> import localprop as lp
        >>> rule = lp.solo(every=50)

    Reference: Yin, Wang, Pan, Li, SOLO, 2026, arXiv 2609.35440.
    """
    return Rule(aux=SharedReadout(blocks, every, readout), reference="Yin et al. 2026, arXiv 2609.35440")
