"""The losses of modules that learn by themselves and in windows, to go with the credit of OwnAndWindows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from localprop.errors import check
from localprop.rule.auxiliary import Site
from localprop.rule.losses import CrossEntropy, LocalLoss, Seen
from localprop.rule.reconstruction import PixelReconstruction
from localprop.rule.terms import Term, Terms


class _NoLoss(LocalLoss):
    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        return 0.0 * features.sum()


@dataclass(frozen=True)
class OwnAndWindowLosses:
    """HPFF's two losses at the end of module i = 1..K-2, the module's own and that of the window that ends there::

        own:     own * CE
        window:  window * ((1 - r) * first + r * last) . (patch reconstruction, CE)        r = i / (K - 2)

    With the published last weights, 0 and 0, the last window has no loss, and module K-2 learns from its own and the task's.

    Attributes:
        own: the weight of a module's own loss.
        window: that of the windows' losses.
        first: the weights of reconstruction and cross-entropy at r = 0, a module before the first window.
        last: those at r = 1.
        patches: the image is reconstructed in patches x patches parts.
        counted: K of the formula; 0: the number of modules. The code's is 1 more where its list of cuts leaves the stem out:
            16 for the 15 modules of ResNet-32, 55 for the 54 of ResNet-110.

    Raises:
        BadInput: weights that are negative, or no pair; fewer than 1 patch; what reconstruction refuses.

    Example:
        >>> OwnAndWindowLosses(first=(0.0, 1.0), last=(0.0, 1.0))             # cross-entropies alone
        OwnAndWindowLosses(own=0.001, window=0.999, first=(0.0, 1.0), last=(0.0, 1.0), patches=2, counted=0)

    Source: Su, He, Zhu, Xu, Guan, Si, HPFF: Hierarchical Locally Supervised Learning with Patch Feature Fusion, ECCV 2024,
    arXiv 2407.05638, and its code.
    """

    own: float = 0.001
    window: float = 0.999
    first: tuple[float, float] = (5.0, 0.5)
    last: tuple[float, float] = (0.0, 0.0)
    patches: int = 2
    counted: int = 0

    def __post_init__(self) -> None:
        check(self._problems())

    def __call__(self, site: Site) -> LocalLoss:
        if site.objective == 0:
            return Terms((Term(CrossEntropy(), self.own),))(site)
        reconstruction, task = self.weights(site.module, site.modules)
        if reconstruction == task == 0:
            return _NoLoss()
        pixels = PixelReconstruction(patches=self.patches)
        return Terms((Term(pixels, reconstruction), Term(CrossEntropy(), task)))(site)

    def weights(self, module: int, modules: int) -> tuple[float, float]:
        """The weights of reconstruction and cross-entropy in the window that ends with one of `modules` modules."""
        inner = (self.counted or modules) - 2
        passed = min(module / inner, 1.0) if inner > 0 else 0.0
        pairs = zip(self.first, self.last, strict=True)
        reconstruction, task = (self.window * ((1 - passed) * first + passed * last) for first, last in pairs)
        return reconstruction, task

    def _problems(self) -> Iterator[str]:
        for name, weight in (("own", self.own), ("window", self.window)):
            if not 0 < weight < float("inf"):
                yield f"{name}={weight} must be positive and finite."
        for name, pair in (("first", self.first), ("last", self.last)):
            if not (isinstance(pair, tuple) and len(pair) == 2 and all(0 <= weight < float("inf") for weight in pair)):
                yield f"{name}={pair!r} must be two weights, 0 or more: (reconstruction, cross-entropy)."
        if self.patches < 1:
            yield f"patches={self.patches} must be 1 or more."
        if self.counted < 0:
            yield f"counted={self.counted} must be 0 (the number of modules) or more."
