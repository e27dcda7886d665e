"""Methods whose losses train windows of neighbouring modules."""

from __future__ import annotations

from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.credit import OwnAndWindows, Windows
from localprop.rule.rule import Rule
from localprop.rule.windowed import OwnAndWindowLosses


def windows(size: int = 2, stride: int = 1, aux: AuxBuilder = Head()) -> Rule:  # noqa: B008 - parts are frozen
    """Overlapping local losses: each trains a window of neighbouring modules, so that most modules learn from several.

    Equations, with W_k the modules that the window ending with module k holds::

        gradient of f_j = sum over the windows W_k that hold j of dL_k / df_j
        gradient of a_k = dL_k / da_k

    Credit (size=2)::

        loss0 ...|...|...|...
        loss1 TTT|TTT|...|...
        loss2 ...|TTT|TTT|...
        loss3 ...|...|TTT|TTT

    What is taken of the two papers is who trains what: LoCo itself is self-supervised, its windows share a stage and its
    losses contrast views; here losses are supervised, as in local parallelism. size=1 is :func:`greedy`, windows as large as
    the network end-to-end; stride=size cuts the network into fewer, larger modules. Sizes and heads of either paper are not
    known: one module of overlap and InfoPro's 1c2f head are our reading.

    Args:
        size: modules per window.
        stride: modules from one window's beginning to the next one's.
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.windows(size=3)

    Reference: Laskin et al., Parallel Training of Deep Networks with Local Updates, 2020, arXiv 2012.03837; Xiong, Ren,
    Urtasun, LoCo: Local Contrastive Representation Learning, NeurIPS 2020, arXiv 2008.01342.
    """
    reference = "Laskin et al. 2020, arXiv 2012.03837; Xiong et al. 2020, arXiv 2008.01342"
    return Rule(credit=Windows(size=size, stride=stride), aux=aux, reference=reference)


def hpff(
    first: tuple[float, float] = (5.0, 0.5),
    last: tuple[float, float] = (0.0, 0.0),
    own: float = 0.001,
    patches: int = 2,
    counted: int = 0,
    aux: AuxBuilder = Head(convs=2),  # noqa: B008
) -> Rule:
    """HPFF: each module has a loss of its own and, with the module before, that of a window, which reconstructs patches.

    Equations, for k = 2..K-1 with two auxiliary networks a_k and b_k, and r = (k - 1) / (K - 2)::

        L_k = own * CE(a_k(h_k), y)
        V_k = (1 - own) * [((1 - r) first + r last) . (patch reconstruction of x, CE(b_k(h_k), y))]
        gradient of f_1     = dV_2 / df_1
        gradient of f_k     = d(L_k + V_k + V_{k+1}) / df_k
        gradient of f_{K-1} = d(L_{K-1} + V_{K-1} + (1 - own) L_K) / df_{K-1}
        gradient of f_K     = dL_K / df_K

    Credit::

        loss0 ...|TTT|...|...
        loss1 TTT|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|TTT|TTT|...
        loss4 ...|...|aaa|TTT
        where a = T(0.999)

    Of two losses at a module's end the first is the module's own, the second the window's; the last is the task's.
    The code runs every module two or three times; the runs see equal values, so here it runs once. So the last module's two
    losses, of weights own and 1 - own through one classifier, are one of weight 1; running statistics of BatchNorm move once
    per batch and not two or three times. The image is reconstructed by a decoder for each patch of the features; classifiers
    see whole features, as in the code. With `last` at its published value, 0 and 0, the last window has no loss.
    For ImageNet the code leaves the modules' own losses and all weights of windows out, and one decoder sees the whole map:
    ``Rule(credit=Windows(size=2), aux=BottleneckHead((256, 256, 512, 2048)), loss=Terms(...))``, as the recipes have it.

    The learner must know how its inputs were made from pixels (`normalised=`), unless both reconstruction weights are 0.

    Args:
        first: weights of reconstruction and cross-entropy in a window that ended with the first module.
        last: those of the last window.
        own: the weight of a module's own loss; windows have 1 - own.
        patches: patches x patches decoders.
        counted: K of the weights' formula, where it is not the number of modules (:class:`OwnAndWindowLosses`).
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.hpff(counted=16)           # ResNet-32 in 15 modules: Learner(..., normalised=lp.Normalised(mean, std))

    Reference: Su, He, Zhu, Xu, Guan, Si, HPFF: Hierarchical Locally Supervised Learning with Patch Feature Fusion, ECCV 2024,
    arXiv 2407.05638.
    """
    loss = OwnAndWindowLosses(own, 1 - own, first, last, patches, counted)
    credit = OwnAndWindows(weight=1 - own)
    return Rule(credit=credit, aux=aux, loss=loss, reference="Su et al. 2024, arXiv 2407.05638")
