"""Methods whose modules train themselves, with local losses that are more than the classes' cross-entropy."""

from __future__ import annotations

from dataclasses import replace

from localprop.errors import check
from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.contrast import Contrastive
from localprop.rule.credit import Own
from localprop.rule.heads import Bare, PooledHead
from localprop.rule.losses import CrossEntropy, LossBuilder
from localprop.rule.reconstruction import PixelReconstruction
from localprop.rule.rule import Rule
from localprop.rule.similarity import Similarity
from localprop.rule.terms import Term, Terms


def predsim(beta: float = 0.99, features: int = 2048) -> Rule:
    """PredSim: greedy local learning by similarity matching, and a little cross-entropy.

    Equations, with p an average pool to `features` numbers at most, D_k a linear layer, g_k a convolution of the loss's own
    and S the cosines of all pairs in the batch (:class:`localprop.Similarity`)::

        L_k = (1 - beta) * cross-entropy(D_k(p(h_k)), y) + beta * mean squared error(S(g_k(h_k)), S(onehot(y)))
        gradient of f_k, g_k and D_k = dL_k

    Credit: that of :func:`greedy`::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The paper's "pred" is `predsim(beta=0)`, cross-entropy alone, and "sim" `predsim(beta=1)`, without classifiers. Its
    network's own classifier is trained with 1 - beta times the cross-entropy, ours with all of it, which is the same under
    its optimizer, Adam, up to Adam's eps. There every convolution and hidden linear layer is a module.

    Args:
        beta: the share of similarity matching.
        features: the most numbers that a classifier reads: 2048 for CIFAR-10, 4096 for wider networks and CIFAR-100, 1024 for
            MNIST; 512 in AugLocal's re-implementation.

    Raises:
        BadInput: a share outside [0, 1], less than one feature.

    Example:
        >>> import localprop as lp
        >>> rule = lp.predsim(beta=0.99)

    Reference: Nøkland, Eidnes, Training Neural Networks with Local Error Signals, ICML 2019, arXiv 1901.06656.
    """
    check([] if 0 <= beta <= 1 else [f"beta={beta} must lie in [0, 1]: it is the share of similarity matching."])
    reference = "Nøkland and Eidnes 2019, arXiv 1901.06656"
    if beta == 1:
        return Rule(credit=Own(), aux=Bare(), loss=Similarity(), reference=reference)
    loss: LossBuilder = Terms((Term(Similarity(), beta), Term(CrossEntropy(), 1 - beta))) if beta else CrossEntropy()
    return Rule(credit=Own(), aux=PooledHead(features), loss=loss, reference=reference)


def infopro(
    contrast: bool = False,
    first: tuple[float, float] = (5.0, 0.05),
    last: tuple[float, float] = (0.2, 0.5),
    aux: AuxBuilder = Head(),  # noqa: B008 - parts are frozen
    decoder: LossBuilder = PixelReconstruction(),  # noqa: B008
) -> Rule:
    """InfoPro: greedy local learning whose modules keep what the image tells: they reconstruct it, too.

    Equations, with R_k the decoder's loss against the image, and r = (k - 1) / (K - 2), or 0 for K = 2::

        L_k = a_k * R_k(h_k, x) + b_k * loss(a_k(h_k), y)        k = 1..K-1
        (a_k, b_k) = first * (1 - r) + last * r
        gradient of f_k, the decoder and the auxiliary network = dL_k

    Credit: that of :func:`greedy`::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The learner must know how its inputs were made from pixels: `Learner(..., normalised=lp.Normalised(mean, std))`. What has
    weight 0 is left out. The weights are chosen per network, data set and K; the defaults are the official code's for
    ResNet-32 in 16 modules on CIFAR-10. Its others, as first and last (where K = 2 only the first counts)::

        CIFAR-10  ResNet-32   K=2 (5, 1)      K=4 (6, 0) (1, 2)       K=8 (5, 0) (0, 2)       K=16 (5, 0.05) (0.2, 0.5)
                  ResNet-110  K=2 (5, 0.5)    K=4 (1, 0) (0, 1)       K=8 (5, 0) (0, 1)       K=16 (5, 0) (0.5, 1)
        STL-10    ResNet-110  K=2 (10, 1)     K=4 (20, 0.2) (5, 2)    K=8 (20, 0.2) (5, 1)    K=16 (20, 0.5) (10, 0.1)
        SVHN      ResNet-110  K=2 (1, 0.1)    K=4 (5, 0) (0.5, 1)     K=8 (5, 0) (0.5, 2)     K=16 (5, 0.2) (0.5, 1)
        ImageNet  ResNet-101  K=2 (5, 0.75), ResNet-152 K=2 (5, 1)

    Args:
        contrast: the supervised contrastive loss on `aux.hidden` outputs ("InfoPro (contrast)") instead of cross-entropy
            ("softmax"); an auxiliary network other than Head makes as many as it says itself.
        first: the weights of reconstruction and task loss at the first module.
        last: at the last but one module, the last with an auxiliary network.
        aux: the auxiliary network; `BottleneckHead()` for ImageNet.
        decoder: the reconstruction loss; `PixelReconstruction(gradual=True)` for ImageNet.

    Raises:
        BadInput: weights that are negative, or both 0 at a module; what the decoder refuses.

    Example:
        >>> import localprop as lp
        >>> rule = lp.infopro(first=(5.0, 0.0), last=(0.5, 1.0))       # ResNet-110, CIFAR-10, 16 modules

    Reference: Wang et al., Revisiting Locally Supervised Learning (InfoPro), ICLR 2021, arXiv 2101.10832.
    """
    if contrast and isinstance(aux, Head) and not aux.outputs:
        aux = replace(aux, outputs=aux.hidden)
    task: LossBuilder = Contrastive() if contrast else CrossEntropy()
    terms = Terms((Term(decoder, first[0], last[0]), Term(task, first[1], last[1])))
    return Rule(credit=Own(), aux=aux, loss=terms, reference="Wang et al. 2021, arXiv 2101.10832")
