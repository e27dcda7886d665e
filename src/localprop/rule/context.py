"""Contexts: earlier features that a module receives besides its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.models.resnet import init_convs
from localprop.rule.attach import is_map
from localprop.rule.source import Source

__all__ = ["ContextSupply", "ConvEncoder"]


EncoderBuilder = Callable[[Source, torch.Size, torch.Size], nn.Module]


class _PoolToSize(nn.Module):
    """An adaptive average pool to a fixed size.

    Unlike nn.AdaptiveAvgPool2d it returns features that already have that size without a copy.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[2:] == self.size:
            return features
        sides = [divmod(a, b) for a, b in zip(features.shape[2:], self.size, strict=True)]
        if not any(rest for _, rest in sides):  # the same bits, and faster
            return nn.functional.avg_pool2d(features, [side for side, _ in sides])
        return nn.functional.adaptive_avg_pool2d(features, self.size)


@check_arguments
@dataclass(frozen=True)
class ConvEncoder:
    """ContSup's encoders: two 3x3 convolutions for the image, one 1x1 convolution for features.

    All convolutions have a bias, keep the source's resolution, and are followed by BatchNorm and
    ReLU. An average pool at the end gives the encoding the size of the receiver's input.

    Attributes:
        hidden: the width between the two convolutions of the image.

    Raises:
        BadInput: `hidden` is below 1, or a source or receiver does not have maps (N, C, H, W).

    Source: Yu et al., Contextual supply (ContSup), 2023, arXiv 2312.07636, official code.
    """

    hidden: int = 12

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise BadInput(f"ConvEncoder(hidden={self.hidden}): hidden must be 1 or more.")

    def __call__(self, source: Source, from_shape: torch.Size, to_shape: torch.Size) -> nn.Module:
        if not (is_map(from_shape) and is_map(to_shape)):
            raise BadInput(
                f"ConvEncoder needs maps (N, C, H, W), but this context goes from "
                f"{tuple(from_shape)} to {tuple(to_shape)}: give the ContextSupply an encoder for "
                "such features, or leave context out."
            )
        widths = [from_shape[1], *([self.hidden] if source.raw else []), to_shape[1]]
        size = 3 if source.raw else 1
        convs: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            convs += [
                nn.Conv2d(narrow, wide, size, padding=size // 2),
                nn.BatchNorm2d(wide),
                nn.ReLU(inplace=True),
            ]
        encoder = nn.Sequential(*convs, _PoolToSize((to_shape[2], to_shape[3])))
        init_convs(encoder)
        return encoder


@check_arguments
@dataclass(frozen=True)
class ContextSupply:
    """Which earlier features each module after the first receives.

    An encoding of each source is added to the module's input. Whatever trains the module's first
    layer also trains its encoders. Encoders belong to the deployed network. Sources are detached:
    contexts cross cuts in the forward direction only.

    Attributes:
        input: E, whether the network's input is a source.
        previous: n of R_n: the inputs of the n modules before are sources. The input of module 0
            is the network's input, and R_n leaves it out where E supplies it.
        encoder: builds an encoder from (source, its shape, the shape of the receiver's input).

    Raises:
        BadInput: `previous` is negative.

    Example:
        >>> ContextSupply(input=True, previous=1).sources(2)
        (Source(module=0, raw=True), Source(module=1, raw=False))

    Source: Yu et al., 2023, arXiv 2312.07636; modes E, Rn, RnE.
    """

    input: bool = False
    previous: int = 0
    encoder: EncoderBuilder = field(default=ConvEncoder())

    def __post_init__(self) -> None:
        check([f"previous={self.previous} must be 0 or more modules."] if self.previous < 0 else [])

    def sources(self, module: int) -> tuple[Source, ...]:
        """The sources of a module's contexts, in the order in which the contexts are added."""
        if module == 0:
            return ()
        image = (Source(0, raw=True),) if self.input else ()
        earlier = range(module - 1, max(module - 1 - self.previous, -1), -1)
        features = tuple(Source(m, raw=False) for m in earlier if m > 0 or not self.input)
        return image + features
