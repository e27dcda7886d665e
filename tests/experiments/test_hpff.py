"""HPFF's recipes."""

from __future__ import annotations

import localprop as lp
from tests.helpers.recipes import parse_recipe_rule


def test_on_imagenet_hpff_has_windows_only() -> None:
    rule = parse_recipe_rule("resnet101_imagenet_hpff_k4")
    assert rule.credit == lp.WindowCredit(size=2)
    assert rule.aux == lp.BottleneckHead((256, 256, 512, 2048))
    # The official code adds up the losses of four quarters, with a weight of 5 each.
    pixels = lp.Term(lp.PixelReconstruction(gradual=(128, 32)), 20.0)
    assert rule.loss == lp.Terms((pixels, lp.Term(lp.CrossEntropy(), 0.75)))
