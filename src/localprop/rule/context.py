"""Context: earlier features that a module receives besides its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from localprop.errors import BadInput, check
from localprop.models.resnet import init_convs
from localprop.rule.auxiliary import is_map


class Source(NamedTuple):
    """One context of a module: an encoding of the input of module `module` (0: of the network)."""

    module: int
    raw: bool  # E: the image itself, through a deeper encoder


EncoderBuilder = Callable[[Source, torch.Size, torch.Size], nn.Module]


class _ToSize(nn.Module):
    """An adaptive average pool to a fixed size; torch.nn.AdaptiveAvgPool2d without the copy where the size is met."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[2:] == self.size:
            return features
        return nn.functional.adaptive_avg_pool2d(features, self.size)


@dataclass(frozen=True)
class ConvEncoder:
    """ContSup's encoders: two 3x3 convolutions for the raw input, one 1x1 convolution for earlier features.

    Both keep the source's resolution, each convolution with bias, BatchNorm and ReLU, and end with an average pool to the
    size of the receiver's input.

    Attributes:
        hidden: the width between the two convolutions of the raw input.

    Raises:
        BadInput: sources or targets that are no maps (N, C, H, W).

    Source: Yu et al., Contextual supply (ContSup), 2023, arXiv 2312.07636, official code.
    """

    hidden: int = 12

    def __post_init__(self) -> None:
        check([f"ConvEncoder(hidden={self.hidden}): hidden must be 1 or more."] if self.hidden < 1 else [])

    def __call__(self, source: Source, from_shape: torch.Size, to_shape: torch.Size) -> nn.Module:
        if not (is_map(from_shape) and is_map(to_shape)):
            raise BadInput(
                [
                    f"ConvEncoder supplies maps (N, C, H, W), but here context would go from {tuple(from_shape)} to "
                    f"{tuple(to_shape)}: give the ContextSupply an encoder for such features, or leave context out."
                ]
            )
        widths = [from_shape[1], *([self.hidden] if source.raw else []), to_shape[1]]
        size = 3 if source.raw else 1
        convs: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            convs += [nn.Conv2d(narrow, wide, size, padding=size // 2), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
        encoder = nn.Sequential(*convs, _ToSize((to_shape[2], to_shape[3])))
        init_convs(encoder)
        return encoder


@dataclass(frozen=True)
class ContextSupply:
    """Which earlier features each module but the first receives; an encoding of each is added to the module's input.

    Encoders are trained by whatever trains the receiving module's first layer, and belong to the deployed network. Sources
    are detached: context crosses cuts in the forward direction only.

    Attributes:
        input: E, the network's input.
        previous: n of R_n, the inputs of the n modules before; the network's input counts as the input of module 0, and is
            left out of R_n where E supplies it.
        encoder: builds an encoder from (source, its shape, the receiver's shape).

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
        """The contexts of a module, in the order in which they are added."""
        if module == 0:
            return ()
        raw = (Source(0, raw=True),) if self.input else ()
        earlier = range(module - 1, max(module - 1 - self.previous, -1), -1)
        return raw + tuple(Source(m, raw=False) for m in earlier if m > 0 or not self.input)
