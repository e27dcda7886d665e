"""GN-DGL: local learning with neuron groups.

Source: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023, arXiv 2301.07635, official code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.recipes.recipe import Recipe
from localprop.recipes.settings import infopro_setting
from localprop.recipes.tables import equal, layers_in

PAPER = "Patel et al., GN-DGL, 2023, arXiv 2301.07635"
GRID = {1: (1, 2, 4, 8), 2: (1, 2, 4, 8), 4: (1, 2, 4, 8), 8: (1, 2, 4), 16: (1, 2)}  # groups by modules
# Test accuracy in %, read off the paper's figure.
ACCURACIES = {("cifar10", 1, 2): 91.4, ("cifar10", 1, 4): 89.7, ("cifar100", 1, 2): 68.7}
NOTES = (
    "All k modules have group heads and the final classifier is trained apart, so that there are k + 1 modules here; the paper "
    "counts k. All official commands predict by a layer-wise ensemble of the heads, which is left out: a run shows the final "
    "classifier alone."
)
READINGS = (
    "That the figures are of that prediction is likely, but not stated. The shortcuts of first blocks are our reading."
)


def recipes() -> Iterator[Recipe]:
    """All of the family; ResNet-32, and ResNet-32 of twice the width."""
    for data in ("cifar10", "cifar100"):
        for times in (1, 2):
            yield from (grouped(data, k, groups, times) for k in GRID for groups in GRID[k])


def grouped(data: str, k: int, groups: int, times: int = 1) -> Recipe:
    """ResNet-32 in k modules of so many groups, and so many times as wide."""
    ends = (*(equal("resnet32", k) if k > 1 else ()), layers_in("resnet32") - 1)
    listed = f"({','.join(map(str, ends))},)"
    model = f"grouped_resnet:depth=32,groups={groups},ends={listed}" + (f",widen={times}" if times > 1 else "")
    config = replace(infopro_setting(data), model=model, method=f"gn_dgl(groups={groups})", cuts=ends)
    accuracy = ACCURACIES.get((data, k, groups)) if times == 1 else None
    published = f"test accuracy {accuracy} %, read off a figure, +- 0.3" if accuracy else ""
    name = f"resnet32{f'_x{times}' if times > 1 else ''}_{data}_gn_dgl_g{groups}_k{k}"
    return Recipe(name, config, PAPER, published, notes=NOTES, readings=READINGS)
