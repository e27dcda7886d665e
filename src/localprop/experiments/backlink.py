"""BackLink. Its code is not public, and of its text we know only the abstracts.

Source: Guo, Fouda, Eltawil, Salama, BackLink: Supervised Local Training with Backward Links, IEEE
TAI 2023, arXiv 2205.07141.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localprop.experiments.cuts import find_equal_cuts
from localprop.experiments.infopro import ERRORS, MODULES
from localprop.experiments.recipe import Recipe, join_notes
from localprop.experiments.settings import make_infopro_setting, notes_of_data

PAPER = "Guo et al., BackLink, IEEE TAI 2023, arXiv 2205.07141"
READING = (
    "The abstract gives no partition, head or setting, and neither length nor weight of the link. "
    "InfoPro's setting with 1c2f heads and a link over residual blocks with weight 1 are our "
    "reading."
)
LENGTH_NOTE = "An excerpt about the work names links over three layers or modules."
# What the abstracts claim, with the conditions that they name; k is the number of modules where
# they name one.
HEADLINE = (
    "+4.00 points of accuracy over conventional greedy local training with 16 modules (abstract of "
    "2022)"
)
CLAIMS = {
    ("resnet32", "cifar100"): (
        "The abstract of 2023 claims +6.45 points over greedy local training for an unnamed number "
        "of modules."
    ),
    ("resnet110", "stl10"): (
        "The abstract of 2023 claims +2.58 points over a recent work for an unnamed number of "
        "modules."
    ),
    ("resnet110", "cifar10"): (
        "The abstract claims 79 % less memory and 52 % less simulated runtime than backpropagation "
        "for an unnamed number of modules."
    ),
}


def make_recipes() -> Iterator[Recipe]:
    """All recipes of the family: links over one residual block, and a row with links over three."""
    for network in ("resnet32", "resnet110"):
        for data in ("cifar10", "cifar100", "stl10"):
            yield from (make_backlink(network, data, k) for k in MODULES)
            # Elsewhere InfoPro's recipes "_e2e" and "_dgl_k" are the baselines.
            if (network, data) not in ERRORS:
                yield from (make_baseline(network, data, k) for k in (1, *MODULES))
    yield make_backlink("resnet110", "cifar10", 16, length=3)


def make_backlink(network: str, data: str, k: int, length: int = 1) -> Recipe:
    """A network in k modules with links over `length` residual blocks."""
    config = replace(
        make_infopro_setting(data),
        model=network,
        method=f"backlink(layers={length})",
        cuts=find_equal_cuts(network, k),
    )
    published = HEADLINE if (network, data, k) == ("resnet32", "cifar10", 16) else ""
    claim = CLAIMS.get((network, data), "")
    notes = join_notes(claim, LENGTH_NOTE if length == 3 else "", notes_of_data(data))
    name = f"{network}_{data}_backlink_k{k}" + (f"_l{length}" if length > 1 else "")
    return Recipe(name, config, PAPER, published, notes, READING)


def make_baseline(network: str, data: str, k: int) -> Recipe:
    """The baseline of a row with links: end-to-end training (k = 1), or greedy in k modules."""
    config = replace(make_infopro_setting(data), model=network)
    if k == 1:
        config, row = replace(config, method="end_to_end()", modules=1), "e2e"
    else:
        config = replace(config, method="greedy()", cuts=find_equal_cuts(network, k))
        row = f"greedy_k{k}"
    name = f"{network}_{data}_backlink_baseline_{row}"
    return Recipe(name, config, PAPER, notes=notes_of_data(data), readings=READING)
