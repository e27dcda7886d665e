"""Methods that add a penalty to every module's loss."""

from __future__ import annotations

from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.heads import OneConvHead
from localprop.rule.losses import CrossEntropy
from localprop.rule.penalties import Kinetic, Reconciled
from localprop.rule.rule import Rule


def trgl(
    tau: float = 0.5,
    late: float = 2.0,
    label_smoothing: float = 0.1,
    norm: str = "mean",
    plain: bool = False,
    growth: float = 0.0,
    every: int = 50,
    aux: AuxBuilder = OneConvHead(),  # noqa: B008 - parts are frozen
) -> Rule:
    """TRGL: greedy local learning whose modules move their features no further than they need.

    Equations, with r_m the output of the residual branch of block m, and t_k = tau in the first half of the modules,
    late * tau in the second::

        L_k = CE(a_k(h_k), y) + sum over the blocks m of module k of mean(r_m^2) / (2 t_k lambda_k)
        gradient of f_k and a_k = dL_k
        lambda_k = 1 at first; in every `every`-th step, before it is used: lambda_k <- lambda_k + growth * CE(a_k(h_k), y)

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The last module has the term too; its classifier is the network's own, where the paper's is a head like the others, and
    its label smoothing is the learner's: `Learner(task=CrossEntropy(label_smoothing=0.1))`. The defaults are those of
    ResNet-110 on STL-10 with 4 or more modules; 2 modules take tau=50, TinyImageNet 500000, and the CIFAR-100 table tau=0.5,
    late=1, growth=1, every=50. Modules that are trained in turn, once or in several laps, are phases of a run: see the
    recipes resnet101_cifar100_trgl_sequential_k2 and resnet101_cifar100_trgl_multilap_k2. How lambda grows with
    micro-batches and replicas, :class:`Kinetic` says.

    Args:
        tau: of the first half of the modules.
        late: what it is multiplied by in the second half.
        label_smoothing: of the local losses.
        norm: "mean" of the squares as in the code, or their sum per "sample" as in the paper.
        plain: whether layers without a residual branch count by what they add to their input (VGG).
        growth: h, how fast the multiplier lambda grows; 0 leaves it at 1.
        every: s, the steps between two growths.
        aux: the auxiliary network; the default is the paper's "1CNN".

    Example:
        >>> import localprop as lp
        >>> rule = lp.trgl(tau=500000.0, aux=lp.OneConvHead(pools=(8, 8, 8, 4)))        # TinyImageNet, 4 modules

    Reference: Karkar, Ayed, de Bézenac, Gallinari, Module-wise Training of Neural Networks via the Minimizing Movement Scheme,
    NeurIPS 2023.
    """
    penalty = Kinetic(tau=tau, late=late, norm=norm, plain=plain, growth=growth, every=every)
    return Rule(aux=aux, loss=CrossEntropy(label_smoothing), penalty=penalty, reference="Karkar et al. 2023")


def sgr(weight: float = 1.0, distance: str = "squared", aux: AuxBuilder = Head()) -> Rule:  # noqa: B008
    """SGR: successive gradient reconciliation; a module is trained to want of its input what the module before wants of it.

    Equations, with n a sample and l_k its loss at module k's end::

        L_k = l_k + weight * mean over n of |d l_{k,n} / d h_{k-1,n} - sg(d l_{k-1,n} / d h_{k-1,n})|^2        k > 1
        gradient of f_k and a_k = dL_k

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    Second derivatives run through the module and its auxiliary network, so a module's graph is larger, recompute and several
    ranks are refused, and fused attention kernels are not used. Our reading: distance, weight and gradients per sample
    (:class:`Reconciled`); of the heads nothing is known.

    Args:
        weight: lambda.
        distance: "squared" or "cosine".
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> rule = lp.sgr(weight=0.1)

    Reference: Yang, Li, Alfarra, Hammoud, Bibi, Torr, Ghanem, Towards Interpretable Deep Local Learning with Successive
    Gradient Reconciliation, ICML 2024, arXiv 2406.05222.
    """
    return Rule(aux=aux, penalty=Reconciled(weight, distance), reference="Yang et al. 2024, arXiv 2406.05222")
