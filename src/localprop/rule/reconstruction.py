"""Reconstruction: what the features still tell of the image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.errors import check
from localprop.models.resnet import init_convs
from localprop.rule.auxiliary import Normalised, Site
from localprop.rule.losses import LocalLoss, Seen

_GRADUAL_WIDTHS = (128, 32)  # before the last width, where the map grows in three steps


class _Upsample(nn.Module):
    """To a part of the image's size."""

    def __init__(self, part: int) -> None:
        super().__init__()
        self.part = part

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        grown = (-(-size[0] // self.part), -(-size[1] // self.part))
        return functional.interpolate(maps, grown, mode="bilinear", align_corners=True)


class _Decoder(nn.ModuleList):
    """Features (N, C, H, W) to the logits of pixels (N, channels, *size)."""

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        for part in self:
            features = part(features, size) if isinstance(part, _Upsample) else part(features)
        return features


def _normed(conv: nn.Conv2d) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]


def _decoder(narrow: int, width: int, chans: int, gradual: bool) -> _Decoder:
    if gradual:
        body: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise((narrow, *_GRADUAL_WIDTHS, width))):
            size = 3 if i else 1
            body += [*_normed(nn.Conv2d(a, b, size, padding=size // 2)), _Upsample(4 >> i)]
    else:
        body = [_Upsample(1), *_normed(nn.Conv2d(narrow, width, 3, padding=1))]
    decoder = _Decoder([*body, nn.Conv2d(width, chans, 3, padding=1)])
    init_convs(decoder)
    return decoder


def _quarters(maps: Tensor, patches: int) -> Iterator[Tensor]:
    """Maps (N, C, H, W) cut into patches x patches, row by row."""
    height, width = maps.shape[2:]
    for i in range(patches):
        for j in range(patches):
            rows = slice(i * height // patches, (i + 1) * height // patches)
            yield maps[:, :, rows, j * width // patches : (j + 1) * width // patches]


class _PixelReconstructionLoss(LocalLoss):
    def __init__(self, decoders: list[_Decoder], patches: int, normalised: Normalised) -> None:
        super().__init__()
        self.decoders = nn.ModuleList(decoders)
        self.patches = patches
        self.register_buffer("mean", torch.tensor(normalised.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalised.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        # Rounding may put a pixel a little outside 0..1.
        pixels = (seen.inputs * self.get_buffer("std") + self.get_buffer("mean")).clamp(0, 1)
        with torch.autocast(features.device.type, enabled=False):
            pieces = zip(_quarters(features, self.patches), _quarters(pixels, self.patches), self.decoders, strict=True)
            return torch.stack([_error(part, image, decoder) for part, image, decoder in pieces]).sum()


def _error(features: Tensor, pixels: Tensor, decoder: nn.Module) -> Tensor:
    """Binary cross-entropy; of logits, which is that of their sigmoid without its overflow."""
    dtype = next(decoder.parameters()).dtype
    logits = decoder(features.to(dtype), tuple(pixels.shape[2:]))
    return functional.binary_cross_entropy_with_logits(logits, pixels.to(dtype))


@dataclass(frozen=True)
class PixelReconstruction:
    """InfoPro's reconstruction: a small decoder makes the image from the features, of which it keeps the information.

    The decoder grows the map (bilinear, corners aligned) to the size of the image; a 3x3 convolution with bias, BatchNorm and
    ReLU and a 3x3 convolution with bias make the pixels, after a sigmoid. The loss is their binary cross-entropy with the
    pixels of the input in 0..1, in float32 under autocast too. It does not look through the auxiliary network.

    Attributes:
        width: the channels before the pixels.
        patches: features and image are cut into patches x patches, each with a decoder of its own, and the losses are
            summed; 2 is HPFF's.
        gradual: the form for ImageNet: a 1x1 convolution to 128 channels, then 3x3 ones to 32 and to `width`, the map grown
            to a quarter, half and all of the image's size after each; with bias, like all convolutions here.

    Raises:
        BadInput: numbers below 1; inputs or features that are no maps, or smaller than the patches; a learner that does not
            know how its inputs were made from pixels.

    Example:
        >>> loss = lp.PixelReconstruction(width=12)        # Learner(..., normalised=lp.Normalised(mean, std))

    Source: Wang et al., Revisiting Locally Supervised Learning (InfoPro), ICLR 2021, arXiv 2101.10832, official code; patches:
    Su et al., HPFF, ECCV 2024, arXiv 2407.05638, official code.
    """

    width: int = 12
    patches: int = 1
    gradual: bool = False

    def __post_init__(self) -> None:
        low = [("width", self.width), ("patches", self.patches)]
        check(f"PixelReconstruction({name}={value}): {name} must be 1 or more." for name, value in low if value < 1)

    def __call__(self, site: Site) -> LocalLoss:
        check(self._problems(site))
        assert site.normalised is not None
        narrow, chans = site.features[1], site.layers.input_shape[1]
        decoders = [_decoder(narrow, self.width, chans, self.gradual) for _ in range(self.patches**2)]
        return _PixelReconstructionLoss(decoders, self.patches, site.normalised)

    def _problems(self, site: Site) -> Iterator[str]:
        image, features, normalised = site.layers.input_shape, site.features, site.normalised
        if len(image) != 4 or not site.is_map():
            yield (
                f"PixelReconstruction makes images from maps (N, C, H, W), but inputs are {tuple(image)} and module "
                f"{site.module} ends with {tuple(features)}: use another loss, such as loss=CrossEntropy()."
            )
        elif min(*image[2:], *features[2:]) < self.patches:
            yield (
                f"PixelReconstruction(patches={self.patches}) cannot cut features {tuple(features)} at module "
                f"{site.module}: use fewer patches."
            )
        if normalised is None:
            yield (
                "PixelReconstruction needs to know how the inputs were made from pixels: give the learner "
                "normalised=Normalised(mean, std), or Normalised() if they are pixels in 0..1."
            )
        elif len(image) == 4 and any(len(numbers) not in (1, image[1]) for numbers in normalised):
            yield f"{normalised} does not fit inputs of {image[1]} channels: give one number for each, or one for all."
