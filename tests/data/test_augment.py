"""Augmentation against a slow implementation that changes one image at a time."""

from __future__ import annotations

import pytest
import torch

from localprop.data import Augment
from localprop.data.augment import crop_and_flip, cut_out
from tests.helpers.slow_augment import crop_and_flip_slowly, cut_out_slowly


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    "augment",
    [
        Augment(4, True, True),
        Augment(2),
        Augment(4, False, True),
        Augment(flip=True),
        Augment(3, True),
        Augment(),
    ],
)
def test_crop_and_flip_equals_a_slow_one(augment: Augment, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (64, 3, 7, 6), generator=generator).to(dtype)
    draws = torch.rand(64, 3, generator=generator)
    draws[0], draws[1] = 0, 1 - 2**-24  # both ends
    result = crop_and_flip(images, augment, draws)
    pairs = zip(images, draws, strict=True)
    expected = torch.stack([crop_and_flip_slowly(image, augment, draw) for image, draw in pairs])
    assert result.dtype == dtype
    assert torch.equal(result.double(), expected)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 16])
def test_cutout_equals_a_slow_one(side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 2, 7, 6, generator=generator) + 1
    draws = torch.rand(40, 2, generator=generator)
    draws[0], draws[1] = 0, 1 - 2**-24  # both ends
    result = cut_out(images, side, draws)
    pairs = zip(images, draws, strict=True)
    expected = torch.stack([cut_out_slowly(image, side, draw) for image, draw in pairs])
    assert torch.equal(result, expected)
    if side < 6:
        holes = (result == 0).all(1).sum((1, 2))
        assert holes.max() == side**2  # clipped at the border, whole inside
