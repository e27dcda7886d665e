"""SGR: a penalty on the distance between the gradients of neighbouring modules' losses.

We know no setting of the paper. We run SGR in InfoPro's setting (ResNet-32, CIFAR-10) for
comparison with InfoPro's rows.

Source: Yang et al., Successive Gradient Reconciliation, ICML 2024, arXiv 2406.05222.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.cuts import find_equal_cuts
from localprop.experiments.recipe import Recipe
from localprop.experiments.settings import make_infopro_setting

PAPER = "Yang et al., Successive Gradient Reconciliation (SGR), ICML 2024, arXiv 2406.05222"
READINGS = (
    "Network, cuts, heads, setting, the distance between gradients and its weight are our reading."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    yield from (make_resnet32(k) for k in (2, 4, 8, 16))


def make_resnet32(k: int) -> Recipe:
    """ResNet-32 on CIFAR-10 in k modules."""
    setting = make_infopro_setting("cifar10")
    cuts = find_equal_cuts("resnet32", k)
    config = replace(setting, model="resnet32", method="sgr()", cuts=cuts)
    return Recipe(f"resnet32_cifar10_sgr_k{k}", config, PAPER, readings=READINGS)
