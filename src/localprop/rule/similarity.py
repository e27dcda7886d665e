"""Similarity matching: samples look as similar to each other as their labels do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import check
from localprop.rule.auxiliary import Site
from localprop.rule.contrast import one_label_problems
from localprop.rule.losses import LocalLoss, Seen

_LEAST_CHANNELS = 4  # maps of fewer are images, which are compared pixel by pixel


class _SimilarityLoss(LocalLoss):
    def __init__(self, projection: nn.Module, channel: int, classes: int) -> None:
        super().__init__()
        self.projection = projection
        self.channel = channel
        self.classes = classes

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        if isinstance(self.projection, nn.Linear):  # which takes channels that stand last, and leaves them there
            projected = self.projection(features.movedim(self.channel, -1)).movedim(-1, self.channel)
        else:
            projected = self.projection(features)
        with torch.autocast(features.device.type, enabled=False):
            wide = projected.to(torch.promote_types(projected.dtype, torch.float32))
            wanted = _similarities(self._rows(seen.targets, wide.dtype))
            return functional.mse_loss(_similarities(_statistics(wide, self.channel)), wanted)

    def _rows(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets as rows (N, classes): one-hot, or the probabilities that they are."""
        if targets.is_floating_point():
            return targets.to(dtype)
        return (targets[:, None] == torch.arange(self.classes, device=targets.device)).to(dtype)


def _statistics(features: Tensor, channel: int) -> Tensor:
    """One row per sample: of each channel its standard deviation over all positions, if there are several."""
    spatial = tuple(d for d in range(1, features.ndim) if d != channel)
    alone = all(features.shape[d] == 1 for d in spatial)
    if alone or features.shape[channel] < _LEAST_CHANNELS:
        return features.flatten(1)
    return features.std(spatial)


def _similarities(rows: Tensor) -> Tensor:
    """Of all pairs of rows (N, D), each less its own mean: their cosines (N, N)."""
    centred = rows - rows.mean(1, keepdim=True)
    unit: Tensor = centred / (centred.norm(dim=1, keepdim=True) + 1e-8)
    return (unit @ unit.T).clamp(-1, 1)


@dataclass(frozen=True)
class Similarity:
    """PredSim's similarity matching: cosines of pairs of samples, of projected features against those of their labels.

    Equation, with g a 3x3 convolution (a linear layer for vectors and tokens) that keeps the width and has no bias::

        L = 1/N^2 sum over i, j of (S(g(h))_ij - S(onehot(y))_ij)^2
        S(z)_ij = cosine of r(z_i) - mean(r(z_i)) and r(z_j) - mean(r(z_j))

    r is the standard deviation of each channel over the positions of a sample; vectors stay as they are. Tokens are taken as
    positions, which is our reading. The projection is the loss's own: the auxiliary network is not looked through. Cosines
    are computed in float32 under autocast too, of one micro-batch at a time.

    Raises:
        BadInput: a network with an output per token.

    Example:
        >>> rule = lp.Rule(aux=lp.Bare(), loss=lp.Similarity())

    Source: Nøkland, Eidnes, Training Neural Networks with Local Error Signals, ICML 2019, arXiv 1901.06656, official code.
    """

    def __call__(self, site: Site) -> LocalLoss:
        check(one_label_problems("Similarity", site))
        width = site.width()
        convolved = site.is_map()
        projection = nn.Conv2d(width, width, 3, padding=1, bias=False) if convolved else nn.Linear(width, width, False)
        return _SimilarityLoss(projection, site.dimension(), site.outputs)
