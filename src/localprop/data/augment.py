"""Augmentation of batches of images on their device, from draws that were made on the CPU."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """How training images are changed at random; the default changes nothing.

    Args:
        pad: pixels added on each side before a crop of the image's own size; 0 crops nothing.
        reflect: pad by reflection instead of zeros (black).
        flip: mirror each image left to right with probability one half.
        cutout: side in pixels of a square set to zero after normalisation; its centre is uniform over the image, so that
            it may reach beyond the border. 0 cuts nothing out.
        resized: a crop of random area and shape, scaled to the size of the input; for folders of images only.

    Example:
        >>> Augment(pad=4, reflect=True, flip=True) == Augment(4, True, True)  # CIFAR-10's
        True

    Source: cutout: DeVries and Taylor, 2017, arXiv 1708.04552.
    """

    pad: int = 0
    reflect: bool = False
    flip: bool = False
    cutout: int = 0
    resized: bool = False


def augmented(images: Tensor, augment: Augment, draws: Tensor) -> Tensor:
    """Crop and flip each image by its own draws.

    Row i of the result takes its pixels from row `rows[i]` of the image, and columns likewise, so that
    padding, crop and flip are a single gather; the padded images are never made.

    Args:
        images: (N, C, H, W), of any type and device.
        augment: what to do.
        draws: (N, 3), uniform in [0, 1): for the vertical and horizontal offset and the flip.

    Returns:
        Images of the same shape, type and device.

    Example:
        >>> augmented(images, Augment(flip=True), torch.zeros(len(images), 3)).equal(images.flip(-1))
        True
    """
    height, width = images.shape[-2:]
    # float32 draws just below 1 would round up to the offset 2 * pad + 1
    offsets = (draws[:, :2].double() * (2 * augment.pad + 1)).long() - augment.pad
    rows = torch.arange(height) + offsets[:, :1]
    cols = torch.arange(width) + offsets[:, 1:]
    if augment.flip:
        cols = torch.where(draws[:, 2:] < 0.5, cols.flip(1), cols)
    return _gathered(images, rows.to(images.device), cols.to(images.device), augment.reflect)


def cut_out(inputs: Tensor, side: int, draws: Tensor) -> Tensor:
    """Set one square of each normalised image to zero.

    The square is `side` pixels wide, its centre one of the image's pixels; what would lie outside is clipped.

    Args:
        inputs: (N, C, H, W), on any device.
        side: of the square, in pixels.
        draws: (N, 2), uniform in [0, 1): for the row and the column of the centre.

    Example:
        >>> cut_out(torch.ones(1, 1, 4, 4), 2, torch.tensor([[0.5, 0.0]]))[0, 0].int().tolist()
        [[1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]
    """
    hit = []
    for axis, size in enumerate(inputs.shape[-2:]):
        centre = (draws[:, axis : axis + 1].double() * size).long()
        distance = torch.arange(size) - centre
        hit.append(((distance >= -(side // 2)) & (distance < side - side // 2)).to(inputs.device))
    rows, cols = hit
    return inputs.masked_fill(rows[:, None, :, None] & cols[:, None, None, :], 0.0)


def cutout_problems(augment: Augment, height: int, width: int) -> list[str]:
    """Why a square cannot be cut out of images of this size: it may leave nothing of them.

    Example:
        >>> cutout_problems(Augment(cutout=16), 8, 8)
        ['cutout=16 covers the 8x8 images: give a smaller --cutout.']
    """
    if augment.cutout < max(height, width):
        return []
    return [f"cutout={augment.cutout} covers the {height}x{width} images: give a smaller --cutout."]


def _gathered(images: Tensor, rows: Tensor, cols: Tensor, reflect: bool) -> Tensor:
    """Pixels of images (N, C, H, W) at rows (N, H) and columns (N, W), which may lie outside."""
    count, chans, height, width = images.shape
    sample = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(chans, device=images.device).view(1, -1, 1, 1)
    row, row_inside = _inside(rows, height, reflect)
    col, col_inside = _inside(cols, width, reflect)
    pixels = images[sample, channel, row.view(count, 1, height, 1), col.view(count, 1, 1, width)]
    if reflect:
        return pixels
    return pixels * (row_inside.view(count, 1, height, 1) & col_inside.view(count, 1, 1, width))


def _inside(positions: Tensor, size: int, reflect: bool) -> tuple[Tensor, Tensor]:
    """Positions brought into 0..size-1, and which of them were there before."""
    inside = (positions >= 0) & (positions < size)
    if reflect:
        return (size - 1) - ((size - 1) - positions.abs()).abs(), inside
    return positions.clamp(0, size - 1), inside
