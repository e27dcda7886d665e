"""ContSup: the experiments in its official repository, which has no figures. We know none.

Source: Yu, Zhang, Ma, Wang, Li, Go beyond End-to-End Training: Boosting Greedy Local Learning with
Context Supply, 2023, arXiv 2312.07636, official code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.cuts import find_equal_cuts, find_memory_balanced_cuts
from localprop.experiments.infopro import WEIGHTS, Weights, all_notes_of_data
from localprop.experiments.recipe import Recipe, join_notes
from localprop.experiments.settings import make_infopro_setting

PAPER = "Yu et al., ContSup, 2023, arXiv 2312.07636"
Row = tuple[str, str, bool, int]  # mode, task loss, decoder, modules
# Context of each mode: the image, and the number of preceding modules whose inputs are added.
MODES = {
    "r0": (False, 0),
    "e": (True, 0),
    "r1": (False, 1),
    "r1e": (True, 1),
    "r2": (False, 2),
    "r4": (False, 4),
    "r8": (False, 8),
    "r16": (False, 16),
}
WEIGHTS_NOTE = (
    "The official code has the weights 5, 0, 0.5, 0, which leave most modules without labels. Here "
    "they are InfoPro's."
)
BALANCED_NOTE = "Figure 4 of the paper. Like all official commands for it, this run has no decoder."
BALANCED_READING = (
    "The caption says balanced memory, but the official commands of ResNet-32's rows lack the "
    "option for it and run equal modules. That the figure shows balanced ones is our reading."
)


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family."""
    for row in dict.fromkeys(_list_resnet32_rows()):
        yield make_resnet("resnet32", "cifar10", *row)
    for data in ("cifar10", "stl10", "svhn"):  # table 3
        for task in ("softmax", "contrast"):
            for k in (2, 4, 8, 16):
                yield make_resnet("resnet110", data, "r1e", task, True, k)
    yield from (make_memory_balanced("resnet110", k) for k in (2, 3, 4))
    # With 16 modules, ResNet-32's balanced cuts are its equal cuts.
    yield from (make_memory_balanced("resnet32", k) for k in (2, 4, 8))


def _list_resnet32_rows() -> Iterator[Row]:
    for k in (2, 4, 8, 16):
        for mode in ("r0", "e", "r1", "r1e"):  # tables 1 and 2, figure 5
            yield mode, "softmax", False, k
            yield mode, "softmax", True, k
            if mode != "r0":
                yield mode, "contrast", False, k
    for k in (8, 16):  # table 4
        for mode in ("r2", "r4", "r8"):
            yield mode, "softmax", False, k
    yield "r16", "softmax", False, 16


def make_resnet(network: str, data: str, mode: str, task: str, decoder: bool, k: int) -> Recipe:
    """A network in k equal modules that receive the context of a mode."""
    weights = WEIGHTS[network, data][k] if decoder else None
    config = replace(
        make_infopro_setting(data),
        model=network,
        method=format_method(mode, task, weights),
        cuts=find_equal_cuts(network, k),
    )
    weights_note = WEIGHTS_NOTE if (network, data, k) == ("resnet110", "svhn", 4) else ""
    notes = join_notes(weights_note, all_notes_of_data(data))
    name = f"{network}_{data}_contsup_{mode}_{task}{'_decoder' if decoder else ''}_k{k}"
    return Recipe(name, config, PAPER, notes=notes)


def make_memory_balanced(network: str, k: int) -> Recipe:
    """A network in k modules of nearly equal memory that receive the image."""
    config = replace(
        make_infopro_setting("cifar10"),
        model=network,
        method=format_method("e", "contrast", None),
        cuts=find_memory_balanced_cuts(network, "cifar10", k),
    )
    readings = BALANCED_READING if network == "resnet32" else ""
    name = f"{network}_cifar10_contsup_e_contrast_balanced_k{k}"
    return Recipe(name, config, PAPER, notes=BALANCED_NOTE, readings=readings)


def format_method(mode: str, task: str, weights: Weights | None) -> str:
    """The expression of the method: context, and the task loss alone or with InfoPro's decoder."""
    image, previous = MODES[mode]
    options = [f"input={image}, previous={previous}"]
    options += ["aux=Head(outputs=128)"] if task == "contrast" else []
    loss = "ContrastiveLoss()" if task == "contrast" else "CrossEntropy()"
    if weights:
        a, b, c, d = weights
        loss = f"Terms((Term(PixelReconstruction(), {a}, {c}), Term({loss}, {b}, {d})))"
    return f"contsup({', '.join(options)}, loss={loss})"
