"""Losses that ask a module to keep what it was given: its input features are decoded from its output."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import BadInput, check
from localprop.models.resnet import init_convs
from localprop.rule.auxiliary import Site, channel_dimension
from localprop.rule.losses import LocalLoss, Seen


class _MapDecoder(nn.Module):
    """Maps to maps of another size and width; either may have its channels last."""

    def __init__(self, site: Site, target: torch.Size, hidden: int) -> None:
        super().__init__()
        self.from_dim, self.to_dim = site.dimension(), channel_dimension(target, site.layers.input_shape)
        self.size = target[2:] if self.to_dim == 1 else target[1:3]
        self.body = nn.Sequential(
            nn.Conv2d(site.width(), hidden, 3, padding=1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, target[self.to_dim], 3, padding=1),
        )
        init_convs(self)

    def forward(self, features: Tensor) -> Tensor:
        features = features.movedim(self.from_dim, 1)
        larger = functional.interpolate(features, size=self.size, mode="bilinear", align_corners=True)
        decoded: Tensor = self.body(larger)
        return decoded.movedim(1, self.to_dim)


def _bottleneck(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """LoPT's decoder, of each token or vector; it starts out small."""
    linears = nn.Linear(width, hidden), nn.Linear(hidden, outputs)
    for linear in linears:
        nn.init.xavier_uniform_(linear.weight, gain=0.1)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(width), linears[0], nn.GELU(), linears[1])


class _Reconstruction(LocalLoss):
    def __init__(self, decoder: nn.Module, tap: str, weight: float) -> None:
        super().__init__()
        self.decoder, self.weight = decoder, weight
        self.inlet, self.taps = not tap, (tap,) if tap else ()

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        given = seen.taps[self.taps[0]].detach() if self.taps else seen.inlet
        assert given is not None
        decoded: Tensor = self.decoder(features)
        if decoded.ndim == 3:
            decoded = decoded[:, -given.shape[1] :]
        precise = torch.promote_types(decoded.dtype, torch.float32)
        return self.weight * functional.mse_loss(decoded.to(precise), given.reshape(decoded.shape).to(precise))


@dataclass(frozen=True)
class FeatureReconstruction:
    """The mean squared error of a module's input, a constant, decoded from the module's output; in 32 bits at least.

    ============================  =================================================================================
    features                      decoder
    ============================  =================================================================================
    maps (N, C, H, W)             bilinear to the input's size, conv3x3 C->hidden, BatchNorm, ReLU, conv3x3 hidden->C'
    tokens (N, T, C), or (N, C)   LayerNorm, Linear C->hidden, GELU, Linear hidden->C'; weights small, biases 0
    ============================  =================================================================================

    The second is LoPT's; layers and weights of Pathak et al. are not known, the first is our reading. Maps may have their
    channels last. Tokens that stand before those of the input (a class token) are left out. The first module's input is the
    network's own, but of token networks the output of their first layer, the embedding; that layer alone is no module then,
    since it would be compared with itself.

    Attributes:
        weight: of the error.
        hidden: the decoder's inner width; 0 for a quarter of the features' channels.
        shared: whether the weight is divided by the number of local losses, so that they add up to their mean.

    Raises:
        BadInput: a weight that is not positive, a negative width; a module that turns features of one kind into another, as
            maps into tokens.

    Example:
        >>> FeatureReconstruction(weight=10.0, shared=True)
        FeatureReconstruction(weight=10.0, hidden=0, shared=True)

    Source: Pathak, Zhang, Samaras, Local Learning on Transformers via Feature Reconstruction, 2022, arXiv 2212.14215; Shi,
    Han, Wang, Wang, Yang, Su, Rethinking Local Learning: A Cheaper and Faster Recipe for LLM Post-Training (LoPT), 2026,
    arXiv 2605.04913, and its code.
    """

    weight: float = 1.0
    hidden: int = 0
    shared: bool = False

    def __post_init__(self) -> None:
        problems = [] if 0 < self.weight < math.inf else [f"weight={self.weight} must be positive and finite."]
        check([*problems, *([] if self.hidden >= 0 else [f"hidden={self.hidden} must be 0 (a quarter) or more."])])

    def __call__(self, site: Site) -> LocalLoss:
        tap, given = _given(site)
        width = site.width()
        hidden = self.hidden or max(width // 4, 1)
        decoder: nn.Module
        if len(site.features) == 4:
            decoder = _MapDecoder(site, given, hidden)
        else:
            outputs = given[-1] if len(site.features) == 3 else math.prod(given[1:])
            decoder = _bottleneck(width, hidden, outputs)
        return _Reconstruction(decoder, tap, self.weight / (max(site.modules - 1, 1) if self.shared else 1))


def _given(site: Site) -> tuple[str, torch.Size]:
    """What is to be reconstructed: the module whose output it is, "" for the module's own input; and its shape."""
    if len(site.features) > 2 and len(site.features) != 4 and site.dimension() == 1:
        shape = tuple(site.features)
        raise BadInput(
            f"FeatureReconstruction decodes maps (N, C, H, W), tokens (N, T, C) and vectors, but module {site.module} ends with "
            f"{shape}, whose channels come first: use another loss, such as loss=CrossEntropy()."
        )
    layers, own = site.layers, site.layers.input_shape if site.start == 0 else site.layers.shapes[site.start - 1]
    if (site.start > 0 or layers.input_dtype.is_floating_point) and _of_a_kind(site.features, own):
        return "", own
    if site.start == 0 and site.layer > 0 and _of_a_kind(site.features, layers.shapes[0]):
        return layers.names[0], layers.shapes[0]
    if site.start == site.layer == 0:
        why = f"is {layers.names[0]!r} alone, whose output would be compared with itself: end the first module later"
    else:
        why = f"turns {tuple(own)} into {tuple(site.features)}, which is of another kind: cut elsewhere, or use another loss"
    raise BadInput([f"FeatureReconstruction decodes a module's input from its output, but module {site.module} {why}."])


def _of_a_kind(features: torch.Size, given: torch.Size) -> bool:
    """Whether one can be decoded from the other: maps from maps, tokens from no fewer tokens, vectors into anything."""
    if len(features) == 3:
        return len(given) == 3 and given[1] <= features[1]
    return len(features) == 2 or len(features) == len(given)
