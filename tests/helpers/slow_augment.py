"""Augmentation of one image, as obviously as possible."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from localprop.data import Augment


def crop_and_flip_slowly(image: Tensor, augment: Augment, draw: Tensor) -> Tensor:
    """One image (C, H, W), as the papers describe it: pad, crop, mirror. The result is float64."""
    height, width = image.shape[-2:]
    mode = "reflect" if augment.reflect else "constant"
    padded = functional.pad(image.double()[None], (augment.pad,) * 4, mode=mode)[0]
    top, left = (int(float(u) * (2 * augment.pad + 1)) for u in draw[:2])
    crop = padded[:, top : top + height, left : left + width]
    return crop.flip(-1) if augment.flip and draw[2] < 0.5 else crop


def cut_out_slowly(image: Tensor, side: int, draw: Tensor) -> Tensor:
    """One image, pixel by pixel: zero if both distances to the centre are within half a side."""
    result = image.clone()
    height, width = image.shape[-2:]
    row, col = int(float(draw[0]) * height), int(float(draw[1]) * width)
    for i in range(max(0, row - side // 2), min(height, row + side - side // 2)):
        for j in range(max(0, col - side // 2), min(width, col + side - side // 2)):
            result[:, i, j] = 0
    return result
