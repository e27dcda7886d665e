"""A primary network cut into local modules."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from localprop.errors import BadInput, check
from localprop.network.balance import balanced_cuts
from localprop.network.layers import Layers, owns_matrix


@dataclass(frozen=True)
class Partition:
    """A primary network cut into local modules. Parameters shared by two modules are refused, by name.

    Attributes:
        layers: the layers of the network.
        cuts: a cut before layer i for each i; the papers' tables name the last layer of a module, i - 1.

    Raises:
        BadInput: cuts that are out of order or out of range, or that separate users of one parameter.

    Example:
        >>> import torch, localprop as lp
        >>> layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 32, 32))
        >>> lp.Partition.uniform(layers, modules=2).modules
        (range(0, 2), range(2, 4))
    """

    layers: Layers = field(repr=False)
    cuts: tuple[int, ...]

    def __post_init__(self) -> None:
        check(self._problems())

    @property
    def modules(self) -> tuple[range, ...]:
        """The layers of each module, as ranges of indices."""
        ends = (*self.cuts, len(self.layers))
        return tuple(range(a, b) for a, b in zip((0, *self.cuts), ends, strict=True))

    def module_of(self, layer: int) -> int:
        """The module that a layer belongs to."""
        return sum(cut <= layer for cut in self.cuts)

    @classmethod
    def uniform(cls, layers: Layers, modules: int) -> Partition:
        """Modules whose numbers of layers differ by at most one, larger ones last.

        Raises:
            BadInput: fewer than one module, or more modules than layers.
        """
        count = len(layers)
        if not 1 <= modules <= count:
            raise BadInput([_too_many(layers, modules)])
        small, larger = divmod(count, modules)
        sizes = [small] * (modules - larger) + [small + 1] * larger
        return cls(layers, tuple(accumulate(sizes))[:-1])

    @classmethod
    def at(cls, layers: Layers, last: Sequence[str | int]) -> Partition:
        """Cut after the named (or numbered) layers: the last layer of each module but the final one.

        Raises:
            BadInput: a name that is no layer, with the reason why it cannot be cut there; numbers, which count from 0, that
                are out of order or out of range.
        """
        check(problem for name in last if isinstance(name, str) for problem in _no_layer(layers, name))
        indices = [layers.names.index(name) if isinstance(name, str) else name for name in last]
        if any(a >= b for a, b in pairwise((-1, *indices, len(layers) - 1))):
            raise BadInput([_bad_order(layers, last)])
        return cls(layers, tuple(index + 1 for index in indices))

    @classmethod
    def balanced(cls, layers: Layers, modules: int, costs: Sequence[float], added: Sequence[float] = ()) -> Partition:
        """Cut so that the costliest module costs as little as possible.

        Args:
            layers: the network's.
            modules: how many.
            costs: of each layer: seconds as measured, bytes, or whatever is to be balanced.
            added: what each module costs besides its layers, as its head.

        Raises:
            BadInput: more modules than layers, or another number of costs than of layers.
        """
        wrong = f"{len(costs)} costs for {len(layers)} layers: give one for each."
        check([wrong] if len(costs) != len(layers) else [])
        return cls(layers, balanced_cuts(costs, modules, added))

    def _problems(self) -> Iterator[str]:
        bounds = (0, *self.cuts, len(self.layers))
        if any(a >= b for a, b in pairwise(bounds)):
            yield (
                f"cuts={self.cuts} must increase and lie between 1 and {len(self.layers) - 1}, "
                f"since the model has {len(self.layers)} layers."
            )
            return
        users: dict[str, set[int]] = {}
        for layer, own in enumerate(self.layers.parameters):
            for name in set(own) - self.layers.frozen:  # what nothing trains may be shared
                users.setdefault(name, set()).add(self.module_of(layer))
        for name, modules in users.items():
            if len(modules) > 1:
                yield (
                    f"Parameter {name!r} is shared by the modules {sorted(modules)}: untie it (give each user a copy of "
                    "its own), or cut so that all its users are in one module; modules=1 (--modules 1) is end-to-end training."
                )


def _too_many(layers: Layers, modules: int) -> str:
    what = f"modules={modules}, but the model has {len(layers)} layer(s) ({', '.join(layers.names[:6])}"
    what += ", ...)" if len(layers) > 6 else ")"
    hint = _why_so_few(layers) if modules > len(layers) else ""
    return f"{what}: choose between 1 and {len(layers)}.{hint}"


# What would make a layer of a module, by words of the reason why it is none.
_ADVICE = {
    "goes around it": "put what goes around a module, as the addition of h + block(h), into the forward of that module",
    "it is called": "give each use a module of its own",
    "it returns a": "return one tensor",
}


def _why_so_few(layers: Layers) -> str:
    """Which modules with weights are no layers though they might be, by reason, and what would make them layers."""
    refused: dict[str, list[str]] = {}
    for name, why in layers.unclean.items():
        inside = any(name.startswith(f"{other}.") for others in (layers.names, *refused.values()) for other in others)
        if not inside and owns_matrix(layers.model.get_submodule(name)) and any(known in why for known in _ADVICE):
            refused.setdefault(why, []).append(name)
    if not refused:
        return ""
    found = [f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}: {why}" for why, names in refused.items()]
    advice = [advice for known, advice in _ADVICE.items() if any(known in why for why in refused)]
    return f" These could not be layers: {'; '.join(found[:4])}. To make layers of them, {'; '.join(advice)}."


def _bad_order(layers: Layers, last: Sequence[str | int]) -> str:
    given, places = ", ".join(map(str, last)), [f"{i} ({name})" for i, name in enumerate(layers.names[:-1])]
    if not places:
        return f"Cuts after {given}: the model has one layer and cannot be cut.{_why_so_few(layers)}"
    shown = places if len(places) <= 6 else [*places[:4], "...", places[-1]]
    return (
        f"Cuts after {given} must increase and lie between 0 and {len(places) - 1}: the model can be cut after "
        f"{', '.join(shown)}, and ends with {len(places)} ({layers.names[-1]})."
    )


def _no_layer(layers: Layers, name: str) -> Iterator[str]:
    if name in layers.names:
        return
    if name in layers.unclean:
        yield f"The model cannot be cut at {name!r}: {layers.unclean[name]}. Layers end at: {', '.join(layers.names)}."
    else:
        close = difflib.get_close_matches(name, layers.names, n=3)
        meant = f"did you mean {' or '.join(close)}?" if close else f"layers end at: {', '.join(layers.names)}."
        yield f"The model has no module {name!r}: {meant}"
