"""GN-DGL: local learning with neuron groups.

Source: Patel, Eickenberg, Belilovsky, Local Learning with Neuron Groups, 2023, arXiv 2301.07635,
official code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.cuts import count_layers, find_equal_cuts
from localprop.experiments.recipe import Recipe, join_notes
from localprop.experiments.settings import make_infopro_setting, notes_of_data

PAPER = "Patel et al., GN-DGL, 2023, arXiv 2301.07635"
# Numbers of groups for each number of modules, by the official code's names of it. "1" is the whole
# network end-to-end, "1a" all blocks in one module with group heads, which its commands run.
GRID = {
    "1": (1, 2, 4, 8),
    "1a": (1, 2, 4, 8),
    "2": (1, 2, 4, 8),
    "4": (1, 2, 4, 8),
    "8": (1, 2, 4),
    "16": (1, 2),
}
# Test accuracy in %, read off the paper's figure, by data, modules and groups.
ACCURACIES = {("cifar10", "1a", 2): 91.4, ("cifar10", "1a", 4): 89.7, ("cifar100", "1a", 2): 68.7}
NOTES = (
    "All k modules have group heads and the final classifier is trained separately, so this run "
    "has k + 1 modules; the paper counts k. All official commands predict with a layer-wise "
    "ensemble of the heads. This run has no ensemble and reports the final classifier alone."
)
END_TO_END_NOTES = (
    "Here the official code trains the whole network end-to-end, without group heads. All official "
    "commands for K = 1 run its form 1A instead, the recipes with k1a."
)
READINGS = "The reported figures probably use this ensemble prediction; the paper does not say."
ONE_MODULE_READING = "That the paper's K = 1 is the form of the commands, 1A, is our reading."


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family: ResNet-32, and ResNet-32 of twice the width."""
    for data in ("cifar10", "cifar100"):
        for width in (1, 2):
            for k, grid_row in GRID.items():
                yield from (make_resnet32(data, k, groups, width) for groups in grid_row)


def make_resnet32(data: str, k: str, groups: int, width: int = 1) -> Recipe:
    """ResNet-32 in k modules of neuron groups.

    Args:
        data: the data set.
        k: modules as the official code names them, without the final classifier.
        groups: per module.
        width: a factor of the network's width.
    """
    cuts = find_module_ends(k)
    ends = "".join(f"{end}," for end in cuts)
    model = f"grouped_resnet:depth=32,groups={groups},ends=({ends})"
    if width > 1:
        model += f",widen={width}"
    config = replace(make_infopro_setting(data), model=model)
    if k == "1":
        config = replace(config, method="end_to_end()", modules=1)
        notes, readings = END_TO_END_NOTES, ""
    else:
        config = replace(config, method=_format_method(groups, width), cuts=cuts)
        notes, readings = NOTES, join_notes(READINGS, ONE_MODULE_READING if k == "1a" else "")
    accuracy = ACCURACIES.get((data, k, groups)) if width == 1 else None
    published = f"test accuracy {accuracy} %, read off a figure, +- 0.3" if accuracy else ""
    network = f"resnet32_x{width}" if width > 1 else "resnet32"
    name = f"{network}_{data}_gn_dgl_g{groups}_k{k}"
    notes = join_notes(notes, notes_of_data(data))
    return Recipe(name, config, PAPER, published, notes=notes, readings=readings)


def find_module_ends(k: str) -> tuple[int, ...]:
    """The last block of each module with group heads.

    Example:
        >>> [find_module_ends(k) for k in ("1", "1a", "2")]
        [(), (15,), (7, 15)]
    """
    if k == "1":
        return ()
    inner = () if k == "1a" else find_equal_cuts("resnet32", int(k))
    return *inner, count_layers("resnet32") - 1


def _format_method(groups: int, width: int) -> str:
    """The hidden layer of the heads grows with the network, as in the official code."""
    heads = f", aux=WideningHead(hidden={128 * width})" if width > 1 else ""
    return f"gn_dgl(groups={groups}{heads})"
