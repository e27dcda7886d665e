"""GN-DGL: local learning with neuron groups.

Source: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023, arXiv 2301.07635,
official code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.cuts import count_layers, find_equal_cuts
from localprop.experiments.recipe import Recipe
from localprop.experiments.settings import make_infopro_setting

PAPER = "Patel et al., GN-DGL, 2023, arXiv 2301.07635"
# Numbers of groups for each number of modules.
GRID = {
    1: (1, 2, 4, 8),
    2: (1, 2, 4, 8),
    4: (1, 2, 4, 8),
    8: (1, 2, 4),
    16: (1, 2),
}
# Test accuracy in %, read off the paper's figure, by data, modules and groups.
ACCURACIES = {("cifar10", 1, 2): 91.4, ("cifar10", 1, 4): 89.7, ("cifar100", 1, 2): 68.7}
NOTES = (
    "All k modules have group heads and the final classifier is trained separately, so this run "
    "has k + 1 modules; the paper counts k. All official commands predict with a layer-wise "
    "ensemble of the heads. This run has no ensemble and reports the final classifier alone."
)
READINGS = (
    "The reported figures probably use this ensemble prediction; the paper does not say. The "
    "shortcuts of first blocks are our reading."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family: ResNet-32, and ResNet-32 of twice the width."""
    for data in ("cifar10", "cifar100"):
        for width in (1, 2):
            for k, grid_row in GRID.items():
                yield from (make_resnet32(data, k, groups, width) for groups in grid_row)


def make_resnet32(data: str, k: int, groups: int, width: int = 1) -> Recipe:
    """ResNet-32 in k modules of neuron groups.

    Args:
        data: the data set.
        k: modules as the paper counts them, without the final classifier.
        groups: per module.
        width: a factor of the network's width.
    """
    last_block = count_layers("resnet32") - 1
    cuts = (*(find_equal_cuts("resnet32", k) if k > 1 else ()), last_block)
    ends = ",".join(map(str, cuts))
    model = f"grouped_resnet:depth=32,groups={groups},ends=({ends},)"
    if width > 1:
        model += f",widen={width}"
    config = replace(
        make_infopro_setting(data), model=model, method=f"gn_dgl(groups={groups})", cuts=cuts
    )
    accuracy = ACCURACIES.get((data, k, groups)) if width == 1 else None
    published = f"test accuracy {accuracy} %, read off a figure, +- 0.3" if accuracy else ""
    network = f"resnet32_x{width}" if width > 1 else "resnet32"
    name = f"{network}_{data}_gn_dgl_g{groups}_k{k}"
    return Recipe(name, config, PAPER, published, notes=NOTES, readings=READINGS)
