"""ContSup: the experiments that its official repository lists. It holds no figures, and the paper's are not known to us.

Source: Yu, Zhang, Ma, Wang, Li, Go beyond End-to-End Training: Boosting Greedy Local Learning with Context Supply, 2023,
arXiv 2312.07636, official code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.recipes.infopro import SVHN_NOTE, WEIGHTS, Weights
from localprop.recipes.recipe import Recipe, noted
from localprop.recipes.settings import infopro_setting, noted_of
from localprop.recipes.tables import balanced, equal

PAPER = "Yu et al., ContSup, 2023, arXiv 2312.07636"
Row = tuple[str, str, bool, int]  # mode, task's loss, decoder, modules
# Context of each mode: the image, and how many inputs of modules before.
MODES = {
    "r0": (False, 0), "e": (True, 0), "r1": (False, 1), "r1e": (True, 1),
    "r2": (False, 2), "r4": (False, 4), "r8": (False, 8), "r16": (False, 16),
}  # fmt: skip
TYPO = "The official code has the weights 5, 0, 0.5, 0, which leave most modules without labels; these are InfoPro's."
BALANCED_NOTE = "Figure 4 of the paper; like all of its official commands, without the decoder."
SWITCH_NOTE = (
    "The official commands of ResNet-32's rows leave the switch for balanced memory out and so run equal modules, although "
    "their caption has it: that the figure is of balanced ones is our reading."
)


def recipes() -> Iterator[Recipe]:
    """All of the family."""
    yield from (experiment("resnet32", "cifar10", *row) for row in dict.fromkeys(_resnet32()))
    for data in ("cifar10", "stl10", "svhn"):  # table 3
        rows = [(task, k) for task in ("softmax", "contrast") for k in (2, 4, 8, 16)]
        yield from (experiment("resnet110", data, "r1e", task, True, k) for task, k in rows)
    yield from (balanced_memory("resnet110", k) for k in (2, 3, 4))
    yield from (balanced_memory("resnet32", k) for k in (2, 4, 8))  # 16 balanced modules are 16 equal ones


def _resnet32() -> Iterator[Row]:
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


def experiment(network: str, data: str, mode: str, task: str, decoder: bool, k: int) -> Recipe:
    """A network in k equal modules that receive the context of a mode."""
    weights = WEIGHTS[network, data][k] if decoder else None
    config = replace(
        infopro_setting(data), model=network, method=contsup_method(mode, task, weights), cuts=equal(network, k)
    )
    typo = TYPO if (network, data, k) == ("resnet110", "svhn", 4) else ""
    name = f"{network}_{data}_contsup_{mode}_{task}{'_decoder' if decoder else ''}_k{k}"
    return Recipe(name, config, PAPER, notes=noted(typo, SVHN_NOTE if data == "svhn" else "", noted_of(data)))


def balanced_memory(network: str, k: int) -> Recipe:
    """A network in k modules of nearly equal memory that receive the image."""
    config = replace(
        infopro_setting("cifar10"),
        model=network,
        method=contsup_method("e", "contrast", None),
        cuts=balanced(network, "cifar10", k),
    )
    reading = SWITCH_NOTE if network == "resnet32" else ""
    name = f"{network}_cifar10_contsup_e_contrast_balanced_k{k}"
    return Recipe(name, config, PAPER, notes=BALANCED_NOTE, readings=reading)


def contsup_method(mode: str, task: str, weights: Weights | None) -> str:
    """Context with a loss of the task alone or, with weights, with InfoPro's decoder."""
    image, previous = MODES[mode]
    words = [f"input={image}, previous={previous}"]
    words += ["aux=Head(outputs=128)"] if task == "contrast" else []
    loss = "Contrastive()" if task == "contrast" else "CrossEntropy()"
    if weights:
        a, b, c, d = weights
        loss = f"Terms((Term(PixelReconstruction(), {a}, {c}), Term({loss}, {b}, {d})))"
    return f"contsup({', '.join(words)}, loss={loss})"
