"""Methods of which no setting is known to us: in InfoPro's, on ResNet-32 and CIFAR-10, to be compared with its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.recipes.recipe import Recipe
from localprop.recipes.settings import infopro_setting
from localprop.recipes.tables import equal

PAPERS = {
    "pgl": "Bhatti and Moon, Locally Supervised Learning with Periodic Global Guidance (PGL), 2022, arXiv 2208.00821",
    "sgr": "Yang et al., Successive Gradient Reconciliation (SGR), ICML 2024, arXiv 2406.05222",
    "windows": "Laskin et al., Parallel Training of Deep Networks with Local Updates, 2020, arXiv 2012.03837",
}
METHODS = {"sgr": "sgr()", "windows": "windows(size=2)"}
PHASES = {"pgl": "greedy() for 4; end_to_end() for 1"}
OURS = "Network, cuts, heads and setting are our reading, and so are "
READINGS = {
    "pgl": "the period and the length of the global phase.",
    "sgr": "the distance between gradients and its weight.",
    "windows": "windows of two modules.",
}


def recipes() -> Iterator[Recipe]:
    """All of the family."""
    yield from (resnet32(method, k) for method in PAPERS for k in (2, 4, 8, 16))


def resnet32(method: str, k: int) -> Recipe:
    """ResNet-32 on CIFAR-10 in k modules."""
    config = replace(infopro_setting("cifar10"), model="resnet32", cuts=equal("resnet32", k))
    config = replace(config, phases=PHASES[method]) if method in PHASES else replace(config, method=METHODS[method])
    return Recipe(f"resnet32_cifar10_{method}_k{k}", config, PAPERS[method], readings=OURS + READINGS[method])
