"""Overlapping local losses: each loss trains a window of neighbouring modules.

We know no setting of the paper. We run windows in InfoPro's setting (ResNet-32, CIFAR-10) for
comparison with InfoPro's rows.

Source: Laskin et al., Parallel Training of Deep Networks with Local Updates, 2020, arXiv
2012.03837.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.cuts import find_equal_cuts
from localprop.experiments.recipe import Recipe
from localprop.experiments.settings import make_infopro_setting

PAPER = (
    "Laskin et al., Parallel Training of Deep Networks with Local Updates, 2020, arXiv 2012.03837"
)
READINGS = "Network, cuts, heads, setting and windows of two modules are our reading."


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    yield from (make_resnet32(k) for k in (2, 4, 8, 16))


def make_resnet32(k: int) -> Recipe:
    """ResNet-32 on CIFAR-10 in k modules."""
    setting = make_infopro_setting("cifar10")
    cuts = find_equal_cuts("resnet32", k)
    config = replace(setting, model="resnet32", method="windows(size=2)", cuts=cuts)
    return Recipe(f"resnet32_cifar10_windows_k{k}", config, PAPER, readings=READINGS)
