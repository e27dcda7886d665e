"""BackLink: local learning with backward links (Guo et al., 2023, arXiv 2205.07141)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from localprop.arguments import check_arguments
from localprop.errors import check
from localprop.network.partition import Partition
from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.credit import find_combination_problems, make_table
from localprop.rule.limits import format_modules
from localprop.rule.rule import Rule
from localprop.rule.table import PASS, CreditTable, Entry, T

__all__ = ["BackwardLinks", "backlink"]


@check_arguments
@dataclass(frozen=True)
class BackwardLinks:
    """Each loss trains its own module and, over a backward link, the last layers before it.

    Attributes:
        layers: the length of the link: how far the gradient travels beyond its own module. A length
            beyond the size of the module before links all of that module.
        weight: a factor of the linked gradient.
        unit: the unit of the length. "layers" counts layers of the network (residual blocks).
            "convs" counts weights on the longest path through a layer. A layer that the link
            reaches is trained as a whole.
        cross_modules: whether a link that is longer than the module before goes on over further
            cuts.
        combine: how a linked layer combines the gradients of its own loss and of the linked one:
            their "sum", their "mean", or the linked one "only".

    Raises:
        BadInput: `layers` is negative, `weight` is not positive and finite, or `unit` or `combine`
            is an unknown word.

    Example (four modules of three layers)::

        BackwardLinks(layers=1)        layers=4, cross_modules=True   layers=1, combine="only"
        loss0 TTT|...|...|...          loss0 TTT|...|...|...          loss0 TTp|...|...|...
        loss1 ..T|TTT|...|...          loss1 TTT|TTT|...|...          loss1 ..T|TTp|...|...
        loss2 ...|..T|TTT|...          loss2 ..T|TTT|TTT|...          loss2 ...|..T|TTp|...
        loss3 ...|...|..T|TTT          loss3 ...|..T|TTT|TTT          loss3 ...|...|..T|TTT
    """

    layers: int = 1
    weight: float = 1.0
    unit: str = "layers"
    cross_modules: bool = False
    combine: str = "sum"

    def __post_init__(self) -> None:
        problems = []
        if self.layers < 0:
            problems.append(f"layers={self.layers} must be 0 or more {self.unit}.")
        if not 0 < self.weight < float("inf"):
            problems.append(
                f"weight={self.weight} must be positive and finite (layers=0 means no link)."
            )
        if self.unit not in ("layers", "convs"):
            problems.append(f"unit={self.unit!r} must be layers or convs.")
        check([*problems, *find_combination_problems(self.combine)])

    def __call__(self, partition: Partition) -> CreditTable:
        links = [self._find_linked_layers(partition, k) for k in range(len(partition.modules))]
        counts = Counter(chain.from_iterable(links))

        def make_entry(k: int, layer: int, module: int) -> Entry | None:
            count = counts[layer]
            if k == module:
                return self._make_own_entry(count)
            if layer not in links[k]:
                return None
            share = 1 + count if self.combine == "mean" else 1
            return Entry(train=True, weight=self.weight / share)

        return make_table(partition, make_entry)

    def find_limits(self, partition: Partition) -> Iterator[tuple[str, str]]:
        """Find out where the module before ends earlier than the link."""
        if self.cross_modules:
            return
        cut_off: dict[int, list[int]] = {}  # by what they have, the modules with less
        for module, layers in enumerate(partition.modules[:-1]):
            length = sum(partition.layers.depths[i] if self.unit == "convs" else 1 for i in layers)
            if length < self.layers:
                cut_off.setdefault(length, []).append(module)
        if cut_off:
            yield "layers", " and ".join(map(self._describe_length, cut_off, cut_off.values()))

    def _describe_length(self, length: int, modules: list[int]) -> str:
        unit = "layer" if self.unit == "layers" else "convolution"
        has = "have" if len(modules) > 1 else "has"
        each = " each" if len(modules) > 1 else ""
        return f"{format_modules(modules)} {has} {length} {unit}{'s' * (length != 1)}{each}"

    def _make_own_entry(self, links: int) -> Entry:
        """The entry of a module's own loss at a layer that this number of links reaches."""
        if links and self.combine == "only":
            return PASS
        return Entry(train=True, weight=1 / (1 + links)) if self.combine == "mean" else T

    def _find_linked_layers(self, partition: Partition, k: int) -> range:
        """The layers before module k that the link of its loss reaches."""
        start = partition.modules[k].start
        first, left = start, self.layers
        while left > 0 and first > 0:
            if not self.cross_modules and partition.module_of(first - 1) != k - 1:
                break
            first -= 1
            # A layer may be deeper than what is left of the link. It is trained as a whole.
            left -= partition.layers.depths[first] if self.unit == "convs" else 1
        return range(first, start)


@check_arguments
def backlink(
    layers: int = 1,
    weight: float = 1.0,
    unit: str = "layers",
    cross_modules: bool = False,
    combine: str = "sum",
    aux: AuxBuilder = Head(),  # noqa: B008 - builders are frozen
) -> Rule:
    """BackLink: over a backward link, each loss also trains the last layers of the module before.

    Equations, with T_k the last `layers` layers of module k and F_k the others::

        gradient of F_k = dL_k / dF_k
        gradient of T_k = dL_k / dT_k + weight * dL_{k+1} / dT_k                  combine="sum"
                        = (dL_k / dT_k + weight * dL_{k+1} / dT_k) / 2            combine="mean"
                        = weight * dL_{k+1} / dT_k                                combine="only"
        gradient of a_k = dL_k / da_k

    Credit (layers=1)::

        loss0 TTT|...|...|...
        loss1 ..T|TTT|...|...
        loss2 ...|..T|TTT|...
        loss3 ...|...|..T|TTT

    Our reading: the paper's abstract says that errors flow into the module before over a restricted
    length. No code is known. The abstract does not state the unit of the length (here a layer: a
    residual block), its values, a weight, or the heads. So the link adds to the module's own loss,
    stops within that module, and has weight 1 and InfoPro's 1c2f heads.

    The arguments reach other readings that the abstract allows:

    - `unit="convs"` counts weights on the longest path instead of layers. A layer is trained as a
      whole, so a link of one convolution into a block of two trains both.
    - `cross_modules=True` continues the link over further cuts.
    - `layers` larger than any module is the full link. It equals `interlocking` of 2 modules: its
      sum or, with `combine="only"`, the published one.

    A module that runs the linked layers again as its own first ones would have the default's
    gradients, but would compute these layers twice. Left out: a link that passes on the gradient
    that the module ahead receives over its own link.

    Args:
        layers: the length of the link, in layers of the module before. 0 is `greedy`.
        weight: a factor of the linked gradient.
        unit: the unit of the length, "layers" or "convs".
        cross_modules: whether a link that is longer than the module before goes on over further
            cuts.
        combine: how a linked layer combines the gradients of its own loss and of the linked one:
            their "sum", their "mean", or the linked one "only".
        aux: the auxiliary network.

    Raises:
        BadInput: a value that `BackwardLinks` does not accept.

    Example:
        >>> import localprop as lp
        >>> rule = lp.backlink(layers=3)

    Reference: Guo, Fouda, Eltawil, Salama, BackLink: Supervised Local Training with Backward Links,
    IEEE TAI 2023, arXiv 2205.07141.
    """
    credit = BackwardLinks(layers, weight, unit, cross_modules, combine)
    return Rule(credit=credit, aux=aux, reference="Guo et al. 2023, arXiv 2205.07141")
