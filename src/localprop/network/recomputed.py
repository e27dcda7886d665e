"""Which layers run again in the backward, instead of keeping what they have computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import count, pairwise
from typing import NamedTuple

from localprop.errors import check
from localprop.network.layers import LayerCall, Layers

RecomputeChoice = bool | int | str | Sequence[str]

MODULES = "modules"


class Stretch(NamedTuple):
    """Neighbouring layers that run again together, and keep only the input of the first.

    Attributes:
        layers: the layers.
        inner: stretches within it. They run once more: of them, the second run of the whole stretch
            keeps no more than their inputs.
    """

    layers: range
    inner: tuple[Stretch, ...] = ()

    def clip(self, span: range) -> Iterator[Stretch]:
        """Its part in a span of layers, if there is one."""
        layers = range(max(self.layers.start, span.start), min(self.layers.stop, span.stop))
        inner = tuple(part for own in self.inner for part in own.clip(layers))
        if layers:
            # What is left of it may be one of its inner stretches.
            yield inner[0] if inner and inner[0].layers == layers else Stretch(layers, inner)

    def format(self, names: Sequence[str]) -> str:
        """As `recompute=` takes it, by the names of layers."""
        first, last = names[self.layers[0]], names[self.layers[-1]]
        inner = ",".join(each.format(names) for each in self.inner)
        return (first if first == last else f"{first}..{last}") + (f"({inner})" if inner else "")


class RerunCall(NamedTuple):
    """A call that runs again.

    Attributes:
        call: the call.
        path: the stretches that it belongs to, by number, the outermost first. Neighbours with the
            same first number run again together.
    """

    call: LayerCall
    path: tuple[int, ...]


class Recomputed(NamedTuple):
    """Layers that run again.

    Attributes:
        stretches: in their order.
        by_module: whether, instead, all layers of a module run again together.
    """

    stretches: tuple[Stretch, ...] = ()
    by_module: bool = False

    @property
    def layers(self) -> frozenset[int]:
        """All layers that run again."""
        return frozenset(layer for stretch in self.stretches for layer in stretch.layers)

    def clip(self, spans: Iterable[tuple[range, bool]]) -> Iterator[Stretch]:
        """The stretches of a network that is cut.

        Args:
            spans: the layers of each segment, and whether a loss sits at its end. There a backward
                follows at once: what runs again together would all be there again beside what
                Python still holds, so a module's layers run again one by one.
        """
        for span, has_loss in spans:
            if not self.by_module:
                yield from (part for stretch in self.stretches for part in stretch.clip(span))
            elif has_loss:
                yield from _list_singles(span)
            else:
                yield Stretch(span)

    def list_calls(
        self, layers: Layers, spans: Iterable[tuple[range, bool]]
    ) -> Iterator[RerunCall]:
        """The calls that run again, in a network that is cut (`clip`)."""
        numbers = count()
        for stretch in self.clip(spans):
            if len(stretch.layers) > 1:
                yield from _list_calls(layers, stretch, (), numbers)
            else:  # calls of one layer run again one by one: each keeps its own input
                for call in layers.calls[stretch.layers[0]]:
                    yield RerunCall(call, (next(numbers),))


def _list_calls(
    layers: Layers, stretch: Stretch, outer: tuple[int, ...], numbers: Iterator[int]
) -> Iterator[RerunCall]:
    path = (*outer, next(numbers))
    inner = {layer: each for each in stretch.inner for layer in each.layers}
    for layer in stretch.layers:
        if layer not in inner:
            yield from (RerunCall(call, path) for call in layers.calls[layer])
        elif layer == inner[layer].layers[0]:
            yield from _list_calls(layers, inner[layer], path, numbers)


def _list_singles(layers: Iterable[int]) -> Iterator[Stretch]:
    return (Stretch(range(layer, layer + 1)) for layer in layers)


def choose_recomputed(layers: Layers, choice: RecomputeChoice) -> Recomputed:
    """The layers of a choice.

    Args:
        layers: the network's.
        choice: True for all layers; n for every n-th; names of layers, with * for any letters; a
            stretch "first..last" of layers that run again together, with stretches inside it in
            brackets, "first..last(first..last)", that run once more; or "modules", for all layers,
            those of a module together.

    Raises:
        BadInput: it names no layer, or one that cannot run again.

    Example:
        >>> import torch, localprop as lp
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4)))
        >>> layers = lp.layers_of(model, torch.randn(2, 3))
        >>> sorted(choose_recomputed(layers, 2).layers)
        [1, 3]
        >>> choose_recomputed(layers, "0..2").stretches
        (Stretch(layers=range(0, 3), inner=()),)
    """
    check(_find_choice_problems(layers, choice))
    names = layers.names
    if choice == MODULES:
        chosen = Recomputed(tuple(_list_singles(range(len(names)))), by_module=True)
    elif isinstance(choice, int):
        every = range(int(choice) - 1, len(names), choice) if choice else ()
        chosen = Recomputed(tuple(_list_singles(every)))
    else:
        parts = [*_split(choice)] if isinstance(choice, str) else choice
        chosen = Recomputed(_read_stretches(names, parts, range(-1, len(names))))
    check(_find_layer_problems(layers, chosen, choice))
    return chosen


def _read_stretches(
    names: Sequence[str], parts: Iterable[str], within: range
) -> tuple[Stretch, ...]:
    """The stretches of a choice, in their order.

    Args:
        names: of the layers.
        parts: of the choice.
        within: layers of which each stretch is a part, and not all.

    Raises:
        BadInput: a part names no layer, or stretches overlap.
    """
    found, problems = set[Stretch](), list[str]()
    for part in parts:
        outer, bracket, inner = part.partition("(")
        ranges = _find_ranges(names, outer)
        if not ranges:
            problems.append(
                f"recompute={outer!r} names no layer. The layers are: {', '.join(names)}."
            )
        elif not all(set(layers) < set(within) for layers in ranges):
            whole = f"{names[within[0]]}..{names[within[-1]]}"
            problems.append(f"recompute={outer!r} must be a smaller part of {whole!r}.")
        elif bracket and (".." not in outer or not inner.endswith(")")):
            problems.append(
                f"recompute={part!r}: brackets hold the stretches inside one, 'a..z(b..d,f)'."
            )
        else:
            own = _read_stretches(names, _split(inner[:-1]), ranges[0]) if bracket else ()
            found.update(Stretch(layers, own) for layers in ranges)
    stretches = tuple(sorted(found, key=lambda stretch: stretch.layers.start))
    problems += [
        f"recompute: {one.format(names)!r} and {other.format(names)!r} overlap."
        for one, other in pairwise(stretches)
        if one.layers.stop > other.layers.start
    ]
    check(problems)
    return stretches


def _find_ranges(names: Sequence[str], text: str) -> list[range]:
    """The layers of "first..last", or each one that a pattern fits."""
    first, dots, last = text.partition("..")
    if not dots:
        return [range(i, i + 1) for i, name in enumerate(names) if fnmatchcase(name, text)]
    if first not in names or last not in names:
        return []
    layers = range(names.index(first), names.index(last) + 1)
    return [layers] if layers else []


def _split(text: str) -> Iterator[str]:
    """The parts of a text between commas that stand in no brackets."""
    depth, part = 0, ""
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and not depth:
            yield part
            part = ""
        else:
            part += letter
    yield part


def _find_choice_problems(layers: Layers, choice: RecomputeChoice) -> Iterator[str]:
    what = (
        "it must be True, n for every n-th layer, names of layers such as 'blocks.*', a stretch of "
        "them, 'first..last', or 'modules'"
    )
    names = layers.names
    if isinstance(choice, int):
        if not 0 <= choice <= len(names):
            yield f"recompute={choice}, but there are {len(names)} layers: {what}."
    elif not isinstance(choice, str) and not (
        isinstance(choice, Sequence) and all(isinstance(each, str) for each in choice)
    ):
        yield f"recompute={choice!r}: {what}."


def _find_layer_problems(
    layers: Layers, chosen: Recomputed, choice: RecomputeChoice
) -> Iterator[str]:
    for layer in sorted(chosen.layers):
        for call in layers.calls[layer]:
            if call.changed:
                yield (
                    f"recompute={choice!r}, but {call.name!r} changes {', '.join(call.changed)} "
                    "when it runs, and would change that twice: leave such caches out of the batch "
                    "or the call (use_cache=False in models of transformers), or name other layers "
                    "in recompute=."
                )
