"""Augmentation of batches of images on their device, from random draws made on the CPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from localprop.arguments import check_arguments


@check_arguments
@dataclass(frozen=True)
class Augment:
    """Random changes of training images. The default changes nothing.

    Args:
        pad: pixels added on each side before a crop of the image's original size; 0 disables it.
        reflect: pad by reflection instead of zeros (black).
        flip: mirror each image left to right with probability one half.
        cutout: side in pixels of a square set to zero after normalisation; 0 disables it. Its
            centre is uniform over the image, so the square may reach beyond the border.
        resized: take a crop of random area and aspect ratio, scaled to the size of the input. For
            folders of images only.

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


def crop_and_flip(images: Tensor, augment: Augment, draws: Tensor) -> Tensor:
    """Pad, crop and flip each image by its own draws.

    Row i of the result takes its pixels from row `rows[i]` of the image, and columns likewise.
    Padding, crop and flip are thus a single gather, which never makes the padded images.

    Args:
        images: (N, C, H, W), of any type and device.
        augment: the changes.
        draws: (N, 3), uniform in [0, 1): for the vertical offset, the horizontal offset, the flip.

    Returns:
        Images of the same shape, type and device.

    Example:
        >>> flipped = crop_and_flip(images, Augment(flip=True), torch.zeros(len(images), 3))
        >>> flipped.equal(images.flip(-1))
        True
    """
    height, width = images.shape[-2:]
    # In float32, a draw just below 1 would round up to the offset 2 * pad + 1.
    offsets = (draws[:, :2].double() * (2 * augment.pad + 1)).long() - augment.pad
    rows = torch.arange(height) + offsets[:, :1]
    cols = torch.arange(width) + offsets[:, 1:]
    if augment.flip:
        cols = torch.where(draws[:, 2:] < 0.5, cols.flip(1), cols)
    return _gather_pixels(images, rows.to(images.device), cols.to(images.device), augment.reflect)


def cut_out(inputs: Tensor, side: int, draws: Tensor) -> Tensor:
    """Set one square of each normalised image to zero.

    The square is `side` pixels wide. Its centre is one of the image's pixels. The square is clipped
    at the border of the image.

    Args:
        inputs: (N, C, H, W), on any device.
        side: side of the square, in pixels.
        draws: (N, 2), uniform in [0, 1): for the row and the column of the centre.

    Example:
        >>> cut_out(torch.ones(1, 1, 4, 4), 2, torch.tensor([[0.5, 0.0]]))[0, 0].int().tolist()
        [[1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]
    """
    covered = []
    for axis, size in enumerate(inputs.shape[-2:]):
        centre = (draws[:, axis : axis + 1].double() * size).long()
        distance = torch.arange(size) - centre
        inside = (distance >= -(side // 2)) & (distance < side - side // 2)
        covered.append(inside.to(inputs.device))
    rows, cols = covered
    return inputs.masked_fill(rows[:, None, :, None] & cols[:, None, None, :], 0.0)


def find_cutout_problems(augment: Augment, height: int, width: int) -> list[str]:
    """Check that cutout can leave something of images of this size. One sentence if it cannot.

    Example:
        >>> find_cutout_problems(Augment(cutout=16), 8, 8)
        ['cutout=16 covers the 8x8 images: give a smaller --cutout.']
    """
    if augment.cutout < max(height, width):
        return []
    return [f"cutout={augment.cutout} covers the {height}x{width} images: give a smaller --cutout."]


def _gather_pixels(images: Tensor, rows: Tensor, cols: Tensor, reflect: bool) -> Tensor:
    """Take pixels of images (N, C, H, W) at rows (N, H) and columns (N, W), possibly outside."""
    count, chans, height, width = images.shape
    sample = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(chans, device=images.device).view(1, -1, 1, 1)
    row, row_inside = _move_inside(rows, height, reflect)
    col, col_inside = _move_inside(cols, width, reflect)
    pixels = images[sample, channel, row.view(count, 1, height, 1), col.view(count, 1, 1, width)]
    if reflect:
        return pixels
    return pixels * (row_inside.view(count, 1, height, 1) & col_inside.view(count, 1, 1, width))


def _move_inside(positions: Tensor, size: int, reflect: bool) -> tuple[Tensor, Tensor]:
    """Move positions into 0..size-1.

    Returns:
        The moved positions, and a mask of those that were inside before.
    """
    inside = (positions >= 0) & (positions < size)
    if reflect:
        # abs() mirrors at 0. The same from the other end mirrors at size - 1.
        return (size - 1) - ((size - 1) - positions.abs()).abs(), inside
    return positions.clamp(0, size - 1), inside
