"""HPFF: hierarchical losses with patch feature fusion (Su et al., ECCV 2024, arXiv 2407.05638)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from localprop.arguments import check_arguments
from localprop.errors import check
from localprop.methods.infopro import PixelReconstruction
from localprop.network.partition import Partition
from localprop.rule.attach import AttachPoint
from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.credit import make_table
from localprop.rule.local_loss import LocalLoss, LossInputs
from localprop.rule.losses import TaskLoss
from localprop.rule.rule import Rule
from localprop.rule.table import CreditTable, Entry
from localprop.rule.terms import Term, Terms

__all__ = ["LocalAndWindowCredit", "LocalAndWindowLosses", "hpff"]


@check_arguments
@dataclass(frozen=True)
class LocalAndWindowCredit:
    """Two losses at a module's end: the first trains the module, the second a window of modules.

    The window is the module and the modules before it. The first module has no loss and learns
    through the first windows. The one loss of the last module is the task's, and trains the whole
    window.

    Attributes:
        size: modules per window.
        weight: the factor of the task's gradients in the modules before the last.

    Raises:
        BadInput: a window of less than 2 modules, or a weight that is not positive.

    Example (four modules of three layers)::

        LocalAndWindowCredit()
        loss0 ...|TTT|...|...          local
        loss1 TTT|TTT|...|...          window
        loss2 ...|...|TTT|...          local
        loss3 ...|TTT|TTT|...          window
        loss4 ...|...|TTT|TTT          the task's
    """

    size: int = 2
    weight: float = 1.0

    def __post_init__(self) -> None:
        problems = [f"size={self.size} must be 2 or more modules."] if self.size < 2 else []
        if not 0 < self.weight < float("inf"):
            problems.append(f"weight={self.weight} must be positive and finite.")
        check(problems)

    def __call__(self, partition: Partition) -> CreditTable:
        last = len(partition.modules) - 1
        # Two losses at each module but the first and the last, and one at the last.
        module_of_loss = (*(module for module in range(1, last) for _ in range(2)), last)

        def entry(loss: int, layer: int, module: int) -> Entry | None:
            end = module_of_loss[loss]
            is_window = loss % 2 == 1 or end == last
            start = end - (self.size - 1 if is_window else 0)
            if not start <= module <= end:
                return None
            return Entry(train=True, weight=self.weight if end == last > module else 1.0)

        return make_table(partition, entry, module_of_loss)


class _ZeroLoss(LocalLoss):
    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        return 0.0 * features.sum()


@check_arguments
@dataclass(frozen=True)
class LocalAndWindowLosses:
    """HPFF's two losses at the end of module i = 1..K-2.

    The first is the module's own, the second that of the window that ends there::

        local:   local * CE
        window:  window * ((1 - r) * first + r * last) . (patch reconstruction, CE),  r = i / (K-2)

    With the published last weights, 0 and 0, the last window has no loss, and module K-2 learns
    from its own loss and the task's.

    Attributes:
        local: the weight of a module's own loss.
        window: the weight of the windows' losses.
        first: the weights of reconstruction and cross-entropy at r = 0, one module before the first
            window.
        last: those at r = 1.
        patches: the image is reconstructed in patches x patches patches.
        official_modules: K of the formula; 0 for the number of modules. The official code counts
            one more where its list of cuts leaves the stem out: 16 for the 15 modules of ResNet-32,
            55 for the 54 of ResNet-110.

    Raises:
        BadInput: weights that are negative or not pairs, fewer than 1 patch, or whatever the
            reconstruction refuses.

    Example:
        >>> LocalAndWindowLosses(first=(0.0, 1.0), last=(0.0, 1.0)).weights(1, 4)  # no pixels
        (0.0, 0.999)

    Source: Su, He, Zhu, Xu, Guan, Si, HPFF: Hierarchical Locally Supervised Learning with Patch
    Feature Fusion, ECCV 2024, arXiv 2407.05638, and its code.
    """

    local: float = 0.001
    window: float = 0.999
    first: tuple[float, float] = (5.0, 0.5)
    last: tuple[float, float] = (0.0, 0.0)
    patches: int = 2
    official_modules: int = 0

    def __post_init__(self) -> None:
        check(self._find_problems())

    def __call__(self, point: AttachPoint) -> LocalLoss:
        if point.objective == 0:
            return Terms((Term(TaskLoss(), self.local),))(point)
        reconstruction, task = self.weights(point.module, point.modules)
        if reconstruction == task == 0:
            return _ZeroLoss()
        pixels = PixelReconstruction(patches=self.patches)
        return Terms((Term(pixels, reconstruction), Term(TaskLoss(), task)))(point)

    def weights(self, module: int, modules: int) -> tuple[float, float]:
        """The weights of reconstruction and cross-entropy.

        Args:
            module: the module that the window ends with.
            modules: the number of modules.
        """
        steps = (self.official_modules or modules) - 2
        r = min(module / steps, 1.0) if steps > 0 else 0.0
        reconstruction, task = (
            self.window * ((1 - r) * first + r * last)
            for first, last in zip(self.first, self.last, strict=True)
        )
        return reconstruction, task

    def _find_problems(self) -> Iterator[str]:
        for name, weight in (("local", self.local), ("window", self.window)):
            if not 0 < weight < float("inf"):
                yield f"{name}={weight} must be positive and finite."
        for name, pair in (("first", self.first), ("last", self.last)):
            if not _are_two_weights(pair):
                yield (
                    f"{name}={pair!r} must be two weights, 0 or more: "
                    "(reconstruction, cross-entropy)."
                )
        if self.patches < 1:
            yield f"patches={self.patches} must be 1 or more."
        if self.official_modules < 0:
            yield (
                f"official_modules={self.official_modules} must be 0 (the number of modules) or "
                "more."
            )


def _are_two_weights(pair: object) -> bool:
    if not isinstance(pair, tuple) or len(pair) != 2:
        return False
    return all(0 <= weight < float("inf") for weight in pair)


@check_arguments
def hpff(
    first: tuple[float, float] = (5.0, 0.5),
    last: tuple[float, float] = (0.0, 0.0),
    local: float = 0.001,
    patches: int = 2,
    official_modules: int = 0,
    aux: AuxBuilder = Head(convs=2),  # noqa: B008 - parts are frozen
) -> Rule:
    """HPFF: each module has a loss of its own and shares that of a window with the module before.

    The window's loss reconstructs patches of the image.

    Equations, for k = 2..K-1 with two auxiliary networks a_k and b_k, and r = (k - 1) / (K - 2)::

        L_k = local * CE(a_k(h_k), y)
        V_k = (1 - local) * [((1 - r) first + r last)
                             . (patch reconstruction of x, CE(b_k(h_k), y))]
        gradient of f_1     = dV_2 / df_1
        gradient of f_k     = d(L_k + V_k + V_{k+1}) / df_k
        gradient of f_{K-1} = d(L_{K-1} + V_{K-1} + (1 - local) L_K) / df_{K-1}
        gradient of f_K     = dL_K / df_K

    Credit::

        loss0 ...|TTT|...|...
        loss1 TTT|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|TTT|TTT|...
        loss4 ...|...|aaa|TTT
        where a = T(0.999)

    Of two losses at a module's end the first is the module's own, the second the window's. The last
    loss is the task's. The official code runs every module two or three times. These runs see equal
    values, so here each module runs once. This has two consequences. The two losses of the last
    module, of weights local and 1 - local through one classifier, are one loss of weight 1. And the
    running statistics of BatchNorm move once per batch, not two or three times.

    A decoder for each patch of the features reconstructs its patch of the image. Classifiers see
    whole features, as in the official code. With `last` at its published value, 0 and 0, the last
    window has no loss. For ImageNet the official code leaves out the modules' own losses and all
    weights of windows, and one decoder sees the whole map. The recipes write this as
    `Rule(credit=WindowCredit(size=2), aux=BottleneckHead((256, 256, 512, 2048)), loss=Terms(...))`.

    Tell the learner how its inputs were made from pixels (`normalization=`), unless both
    reconstruction weights are 0.

    Args:
        first: weights of reconstruction and cross-entropy in a window that would end with the first
            module.
        last: those of the last window.
        local: the weight of a module's own loss; windows have 1 - local.
        patches: patches x patches decoders.
        official_modules: K of the weights' formula, where it is not the number of modules (see
            `LocalAndWindowLosses`).
        aux: the auxiliary network.

    Example:
        >>> import localprop as lp
        >>> # ResNet-32 in 15 modules, with Learner(..., normalization=lp.Normalization(mean, std))
        >>> rule = lp.hpff(official_modules=16)

    Reference: Su, He, Zhu, Xu, Guan, Si, HPFF: Hierarchical Locally Supervised Learning with Patch
    Feature Fusion, ECCV 2024, arXiv 2407.05638.
    """
    losses = LocalAndWindowLosses(local, 1 - local, first, last, patches, official_modules)
    credit = LocalAndWindowCredit(weight=1 - local)
    return Rule(credit=credit, aux=aux, loss=losses, reference="Su et al. 2024, arXiv 2407.05638")
