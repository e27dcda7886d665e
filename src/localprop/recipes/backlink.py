"""BackLink. Its code is not public, and of its text only the abstracts are known to us.

Source: Guo, Fouda, Eltawil, Salama, BackLink: Supervised Local Training with Backward Links, IEEE TAI 2023, arXiv 2205.07141.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.recipes.infopro import ERRORS, MODULES
from localprop.recipes.recipe import Recipe, noted
from localprop.recipes.settings import infopro_setting, noted_of
from localprop.recipes.tables import equal

PAPER = "Guo et al., BackLink, IEEE TAI 2023, arXiv 2205.07141"
READING = (
    "The abstract gives no partition, head, setting, nor the length and weight of the link: InfoPro's setting with 1c2f heads "
    "and a link over residual blocks with weight 1 are our reading."
)
# What the abstracts claim, with the conditions that they name; k is the number of modules where they name one.
HEADLINE = "+4.00 points of accuracy over conventional greedy local training with 16 modules (abstract of 2022)"
CLAIMS = {
    (
        "resnet32",
        "cifar100",
    ): "The abstract of 2023 claims +6.45 points over greedy local training for an unnamed number of modules.",
    (
        "resnet110",
        "stl10",
    ): "The abstract of 2023 claims +2.58 points over a recent work for an unnamed number of modules.",
    (
        "resnet110",
        "cifar10",
    ): "The abstract claims 79 % less memory and 52 % less simulated runtime than backpropagation for an "
    "unnamed number of modules.",
}


def recipes() -> Iterator[Recipe]:
    """All of the family; links of one block, and of three where a module has as many."""
    for network in ("resnet32", "resnet110"):
        for data in ("cifar10", "cifar100", "stl10"):
            yield from (linked(network, data, k) for k in MODULES)
            if (network, data) not in ERRORS:  # the others' baselines are InfoPro's: "_e2e" and "_dgl_k"
                yield baseline(network, data)
                yield from (baseline(network, data, k) for k in MODULES)
    yield linked("resnet110", "cifar10", 16, length=3)


def linked(network: str, data: str, k: int, length: int = 1) -> Recipe:
    """A network in k modules with links over so many residual blocks."""
    method = f"backlink(layers={length})"
    config = replace(infopro_setting(data), model=network, method=method, cuts=equal(network, k))
    headline = HEADLINE if (network, data, k) == ("resnet32", "cifar10", 16) else ""
    three = "An excerpt about the work names links over three layers or modules." if length == 3 else ""
    notes = noted(CLAIMS.get((network, data), ""), three, noted_of(data))
    name = f"{network}_{data}_backlink_k{k}" + (f"_l{length}" if length > 1 else "")
    return Recipe(name, config, PAPER, headline, notes, noted(READING, _measured(data)))


def baseline(network: str, data: str, k: int = 1) -> Recipe:
    """What a row with links is to be compared with: end-to-end training or, in k modules, links of no layers."""
    config = replace(infopro_setting(data), model=network, method="greedy()" if k > 1 else "end_to_end()")
    config = replace(config, cuts=equal(network, k)) if k > 1 else replace(config, modules=1)
    name = f"{network}_{data}_backlink_baseline_{f'greedy_k{k}' if k > 1 else 'e2e'}"
    return Recipe(name, config, PAPER, notes=noted_of(data), readings=noted(READING, _measured(data)))


def _measured(data: str) -> str:
    return "CIFAR-100's normalisation is measured on its training images." if data == "cifar100" else ""
