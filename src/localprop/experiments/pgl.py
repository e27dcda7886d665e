"""PGL: greedy training with periodic phases of end-to-end training.

We know no setting of the paper. We run PGL in InfoPro's setting (ResNet-32, CIFAR-10) for
comparison with InfoPro's rows.

Source: Bhatti, Moon, Locally Supervised Learning with Periodic Global Guidance, 2022, arXiv
2208.00821.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.cuts import find_equal_cuts
from localprop.experiments.recipe import Recipe
from localprop.experiments.settings import make_infopro_setting

PAPER = (
    "Bhatti and Moon, Locally Supervised Learning with Periodic Global Guidance (PGL), 2022, "
    "arXiv 2208.00821"
)
PHASES = "greedy() for 4; end_to_end() for 1"
READINGS = (
    "Network, cuts, heads, setting, the period and the length of the global phase are our reading."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    yield from (make_resnet32(k) for k in (2, 4, 8, 16))


def make_resnet32(k: int) -> Recipe:
    """ResNet-32 on CIFAR-10 in k modules."""
    setting = make_infopro_setting("cifar10")
    cuts = find_equal_cuts("resnet32", k)
    config = replace(setting, model="resnet32", phases=PHASES, cuts=cuts)
    return Recipe(f"resnet32_cifar10_pgl_k{k}", config, PAPER, readings=READINGS)
