"""Which layers run again in the backward, instead of keeping what they have computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from localprop.errors import check
from localprop.network.layers import LayerCall, Layers

RecomputeChoice = bool | int | str | Sequence[str]

MODULES = "modules"


class Recomputed(NamedTuple):
    """Layers that run again.

    Attributes:
        layers: the layers.
        together: whether neighbours within a module run again together, from the input of the first
            of them; else each layer keeps its own input.
    """

    layers: frozenset[int] = frozenset()
    together: bool = False

    def list_calls(
        self, layers: Layers, spans: Iterable[tuple[range, bool]]
    ) -> list[list[LayerCall]]:
        """The calls that run again, those together that do so together.

        Args:
            layers: the network's.
            spans: the layers of each segment, and whether a loss sits at its end. A cut ends what
                runs again together. Where a backward follows at once, that would all be there again
                beside what Python still holds: one by one, less is.
        """
        calls: list[list[LayerCall]] = []
        for span, has_loss in spans:
            together = self.together and not has_loss
            begun = False  # whether the layer before runs again
            for layer in span:
                own = layers.calls[layer] if layer in self.layers else ()
                if together and begun and own:
                    calls[-1] += own
                elif together and own:
                    calls.append([*own])
                else:
                    calls += [[call] for call in own]
                begun = bool(own)
        return calls


def choose_recomputed(layers: Layers, choice: RecomputeChoice) -> Recomputed:
    """The layers of a choice.

    Args:
        layers: the network's.
        choice: True for all layers; n for every n-th; names of layers, with * for any letters; or
            "modules", for all layers, those of a module together.

    Raises:
        BadInput: it names no layer, or one that cannot run again.

    Example:
        >>> import torch, localprop as lp
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4)))
        >>> layers = lp.layers_of(model, torch.randn(2, 3))
        >>> sorted(choose_recomputed(layers, 2).layers)
        [1, 3]
    """
    check(_find_choice_problems(layers, choice))
    names = layers.names
    if choice == MODULES:
        chosen = Recomputed(frozenset(range(len(names))), together=True)
    elif isinstance(choice, int):
        chosen = Recomputed(frozenset(range(int(choice) - 1, len(names), choice) if choice else ()))
    else:
        patterns = _list_patterns(choice)
        chosen = Recomputed(
            frozenset(i for i, name in enumerate(names) if _matches(name, patterns))
        )
    check(_find_layer_problems(layers, chosen, choice))
    return chosen


def _list_patterns(choice: str | Sequence[str]) -> list[str]:
    return choice.split(",") if isinstance(choice, str) else list(choice)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _find_choice_problems(layers: Layers, choice: RecomputeChoice) -> Iterator[str]:
    what = (
        "it must be True, n for every n-th layer, names of layers such as 'blocks.*', or 'modules'"
    )
    names = layers.names
    if isinstance(choice, int):
        if not 0 <= choice <= len(names):
            yield f"recompute={choice}, but there are {len(names)} layers: {what}."
        return
    if not isinstance(choice, str) and not (
        isinstance(choice, Sequence) and all(isinstance(each, str) for each in choice)
    ):
        yield f"recompute={choice!r}: {what}."
        return
    if choice == MODULES:
        return
    for pattern in _list_patterns(choice):
        if not any(_matches(name, [pattern]) for name in names):
            yield f"recompute={pattern!r} names no layer. The layers are: {', '.join(names)}."


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
