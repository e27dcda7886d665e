"""A primary network cut into local modules."""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.network.balance import find_balanced_cuts
from localprop.network.layer_ends import owns_matrix
from localprop.network.layers import LayerEnd, Layers

__all__ = ["Partition"]


@dataclass(frozen=True)
class Partition:
    """A primary network cut into local modules.

    Attributes:
        layers: the layers of the network.
        cuts: the first layer of each module but the first. The papers' tables name the last layer
            of a module instead, which is one less.
        isolate_skips: whether no gradient goes around a cut: a skip connection then trains nothing
            before it. By default credit follows the table, by skips as by layers.

    Raises:
        BadInput: the cuts are out of order or out of range.

    Example:
        >>> import torch, localprop as lp
        >>> layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 32, 32))
        >>> lp.Partition.uniform(layers, modules=2).modules
        (range(0, 2), range(2, 4))
    """

    layers: Layers = field(repr=False)
    cuts: tuple[int, ...]
    isolate_skips: bool = False

    def __post_init__(self) -> None:
        check(self._find_problems())

    @cached_property
    def modules(self) -> tuple[range, ...]:
        """The layers of each module, as ranges of indices."""
        ends = (*self.cuts, len(self.layers))
        return tuple(range(a, b) for a, b in zip((0, *self.cuts), ends, strict=True))

    def module_of(self, layer: int) -> int:
        """The module that a layer belongs to."""
        return bisect_right(self.cuts, layer)

    @classmethod
    @check_arguments
    def uniform(
        cls,
        layers: Layers,
        modules: int,
        *,
        isolate_skips: bool = False,
        ends: Collection[int] | None = None,
    ) -> Partition:
        """Cut into modules whose numbers of layers differ by at most one, larger ones last.

        Args:
            layers: the layers of the network.
            modules: the number of modules.
            isolate_skips: whether no gradient goes around a cut.
            ends: the layers at which a module may end, by default all. Others join the next of
                them, and do not count.

        Raises:
            BadInput: there are fewer than one module, or more modules than layers to end them.
        """
        last = len(layers) - 1
        places = sorted({*(range(last) if ends is None else ends), last})
        if not 1 <= modules <= len(places):
            raise BadInput([_describe_bad_count(layers, modules)])
        small, larger = divmod(len(places), modules)
        sizes = [small] * (modules - larger) + [small + 1] * larger
        cuts = tuple(places[count - 1] + 1 for count in accumulate(sizes))
        return cls(layers, cuts[:-1], isolate_skips)

    @classmethod
    @check_arguments
    def at(
        cls, layers: Layers, last: Sequence[str | int], *, isolate_skips: bool = False
    ) -> Partition:
        """Cut after the layers `last`, given by name or by number.

        Args:
            layers: the layers of the network.
            last: the last layer of each module but the final one. Numbers count from 0.
            isolate_skips: whether no gradient goes around a cut.

        Raises:
            BadInput: the model cannot be cut at one of the names (the message gives the reason), or
                the cuts are out of order or out of range.
        """
        names = [name for name in last if isinstance(name, str)]
        check(problem for name in names for problem in _find_name_problems(layers, name))
        indices = [layers.names.index(name) if isinstance(name, str) else name for name in last]
        if any(a >= b for a, b in pairwise((-1, *indices, len(layers) - 1))):
            raise BadInput([_describe_bad_order(layers, last)])
        return cls(layers, tuple(index + 1 for index in indices), isolate_skips)

    @classmethod
    @check_arguments
    def balanced(
        cls, layers: Layers, modules: int, costs: Sequence[float], added: Sequence[float] = ()
    ) -> Partition:
        """Cut so that the costliest module costs as little as possible.

        Args:
            layers: the layers of the network.
            modules: the number of modules.
            costs: the cost of each layer: measured seconds, bytes, or another quantity to balance.
            added: what each module costs besides its layers, for example the cost of its head.

        Raises:
            BadInput: there are more modules than layers, or another number of costs than of layers.
        """
        if len(costs) != len(layers):
            check([f"{len(costs)} costs for {len(layers)} layers: give one for each."])
        return cls(layers, find_balanced_cuts(costs, modules, added))

    def _find_problems(self) -> Iterator[str]:
        bounds = (0, *self.cuts, len(self.layers))
        if any(a >= b for a, b in pairwise(bounds)):
            yield (
                f"cuts={self.cuts} must increase and lie between 1 and {len(self.layers) - 1}, "
                f"since the model has {len(self.layers)} layers."
            )


# --- messages -------------------------------------------------------------------------------------


def _describe_bad_count(layers: Layers, modules: int) -> str:
    names = ", ".join(layers.names[:6]) + (", ..." if len(layers) > 6 else "")
    hint = explain_missing_layers(layers) if modules > len(layers) else ""
    return (
        f"modules={modules}, but the model has {len(layers)} layer(s) ({names}): "
        f"choose between 1 and {len(layers)}.{hint}"
    )


# What the user can change so that a module becomes a layer, by words of the reason why it is none.
_ADVICE = {
    "goes around it": (
        "put what goes around a module, as the addition of h + block(h), into the forward of that "
        "module"
    ),
    "a random draw": "let every layer run (layerdrop=0, or whatever the model calls it)",
    "inside a compiled module": (
        "pass the model before torch.compile, or compile it in place with model.compile()"
    ),
    "it returns": "return one tensor that the rest reads",
}


def explain_missing_layers(layers: Layers) -> str:
    """Say which modules with weights could be layers after a change, and which change that is."""
    refused = _group_refused_modules(layers)
    if not refused:
        return ""
    found = []
    for reason, names in refused.items():
        found.append(f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}: {reason}")
    advice = [text for words, text in _ADVICE.items() if any(words in why for why in refused)]
    return (
        f" These could not be layers: {'; '.join(found[:4])}. To make layers of them, "
        f"{'; '.join(advice)}."
    )


def _group_refused_modules(layers: Layers) -> dict[str, list[str]]:
    """The names of the modules with weights that are no layers though they might be, by reason."""
    refused: dict[str, list[str]] = {}
    # Only the outermost modules: inside a layer, or a refused module, nothing needs to change.
    outer = [LayerEnd.parse(name).module for name in layers.names]
    for name, reason in layers.not_cuttable.items():
        is_inside = any(f"{name}.".startswith(f"{other}.") for other in outer)
        has_advice = any(words in reason for words in _ADVICE)
        if has_advice and not is_inside and owns_matrix(layers.model.get_submodule(name)):
            refused.setdefault(reason, []).append(name)
            outer.append(name)
    return refused


def _describe_bad_order(layers: Layers, last: Sequence[str | int]) -> str:
    given = ", ".join(map(str, last))
    allowed = [f"{i} ({name})" for i, name in enumerate(layers.names[:-1])]
    if not allowed:
        hint = explain_missing_layers(layers)
        return f"Cuts after {given}: the model has one layer and cannot be cut.{hint}"
    count = len(allowed)
    listed = allowed if count <= 6 else [*allowed[:4], "...", allowed[-1]]
    return (
        f"Cuts after {given} must increase and lie between 0 and {count - 1}: the model can be cut "
        f"after {', '.join(listed)}, and ends with {count} ({layers.names[-1]})."
    )


def _find_name_problems(layers: Layers, name: str) -> Iterator[str]:
    """Yield a problem if no layer ends at the module `name`."""
    if name in layers.names:
        return
    ends = ", ".join(layers.names)
    if name in layers.not_cuttable:
        reason = layers.not_cuttable[name]
        yield f"The model cannot be cut at {name!r}: {reason}. Layers end at: {ends}."
        return
    close = difflib.get_close_matches(name, layers.names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"layers end at: {ends}."
    yield f"The model has no module {name!r}: {hint}"
