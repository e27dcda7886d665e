"""Swin-T: timm's network in another order of modules, and its windows on small images."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers.drop import DropPath
from timm.models.swin_transformer import SwinTransformerBlock

import localprop as lp
from tests.helpers.points import count_parameters

# By window and side of the images: TRGL's on STL-10 and on CIFAR.
WINDOWS = {(6, 96): [6, 6, 6, 3], (8, 32): [8, 4, 2, 1]}


@pytest.mark.parametrize(("window", "side"), WINDOWS)
def test_it_computes_what_timms_network_computes(window: int, side: int) -> None:
    torch.manual_seed(0)
    model = lp.models.swin_t(10, (3, side, side), window).eval()
    torch.manual_seed(0)
    whole = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=side, window_size=window, num_classes=10
    )
    images = torch.randn(2, 3, side, side)
    assert torch.equal(model(images), whole.eval()(images))
    assert count_parameters(model) == count_parameters(whole)


@pytest.mark.parametrize(("window", "side"), WINDOWS)
def test_windows_are_no_larger_than_the_map(window: int, side: int) -> None:
    with torch.device("meta"):
        model = lp.models.swin_t(10, (3, side, side), window)
    blocks = [module for module in model.layers if isinstance(module, SwinTransformerBlock)]
    firsts = [blocks[i] for i in (0, 2, 4, 10)]
    assert [block.window_size[0] for block in firsts] == WINDOWS[window, side]
    # Every second block shifts its windows, unless there is only one.
    shifts = [block.shift_size[0] for block in blocks[1::2]]
    grids = [side // 4, side // 8, *[side // 16] * 3, side // 32]
    assert shifts == [window // 2 if grid > window else 0 for grid in grids]


def test_paths_are_dropped_at_rates_up_to_a_tenth() -> None:
    with torch.device("meta"):
        model = lp.models.swin_t()
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    # Two in each block; the first block drops none.
    assert rates == pytest.approx([0.1 * (i // 2 + 1) / 11 for i in range(22)])


def test_a_stage_ends_with_its_patch_merging() -> None:
    with torch.device("meta"):
        model, images = lp.models.swin_t(), torch.zeros(2, 3, 32, 32)
    shapes = lp.layers_of(model, images).shapes
    assert [shapes[layer][1:] for layer in (0, 3, 6, 13, 15)] == [
        (8, 8, 96),
        (4, 4, 192),
        (2, 2, 384),
        (1, 1, 768),
        (1, 1, 768),
    ]
