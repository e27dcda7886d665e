"""A network as it was, to notice layers that were replaced, frozen, moved or cast since."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from torch import nn

_MAX_NAMES = 4


class Snapshot:
    """Which modules and parameters some networks consist of, and what these are.

    Looking takes about 0.1 ms for ResNet-32 with heads: it compares identities, dtypes, devices.

    Args:
        networks: by the beginning of the names inside.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> snapshot = Snapshot({"": model})
        >>> model[0] = nn.Linear(2, 3)
        >>> list(snapshot.find_changes())
        ["'0' was replaced, added or removed"]
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self._networks = networks
        modules = [module for network in networks.values() for module in network.modules()]
        # Dictionaries of torch's modules: of all of their children and parameters.
        self._places: list[dict[str, Any]] = [
            place for m in modules for place in (m._modules, m._parameters) if place
        ]
        self._held: list[Any] = list(chain.from_iterable(map(dict.values, self._places)))
        self._ids = list(map(id, self._held))
        self._parameters = [each for each in self._held if isinstance(each, nn.Parameter)]
        self._kinds = self._read_kinds()
        self._named = self._name_all()

    def find_changes(self) -> Iterator[str]:
        """What is not as it was, in words; nothing if all is."""
        ids = list(map(id, chain.from_iterable(map(dict.values, self._places))))
        if ids != self._ids:
            yield from self._find_replaced()
        elif (kinds := self._read_kinds()) != self._kinds:
            yield from self._find_altered(kinds)

    def _read_kinds(self) -> list[tuple[Any, ...]]:
        return [(p.requires_grad, p.dtype, p.device) for p in self._parameters]

    def _name_all(self) -> dict[str, Any]:
        return {
            f"{prefix}{name}": each
            for prefix, network in self._networks.items()
            for name, each in (
                *network.named_modules(remove_duplicate=False),
                *network.named_parameters(remove_duplicate=False),
            )
            if name
        }

    def _find_replaced(self) -> Iterator[str]:
        now, before = self._name_all(), self._named
        changed = [
            name
            for name in {**before, **now}
            if now.get(name) is not before.get(name) and self._matters(name, before, now)
        ]
        if not changed:
            return
        inside = tuple(f"{name}." for name in changed)
        outermost = [name for name in changed if not name.startswith(inside)]
        yield f"{_list(outermost)} was replaced, added or removed"

    def _matters(self, name: str, *known: Mapping[str, Any]) -> bool:
        """Whether steps know it: cuts end at any module of the model, of others only parameters."""
        if not name.startswith(tuple(filter(None, self._networks))):
            return True
        each = [networks[name] for networks in known if name in networks]
        return any(isinstance(e, nn.Parameter) or any(e.parameters()) for e in each)

    def _find_altered(self, kinds: list[tuple[Any, ...]]) -> Iterator[str]:
        names = {id(each): name for name, each in self._named.items()}
        rows = list(zip(self._parameters, self._kinds, kinds, strict=True))
        for place, what in enumerate(("requires_grad", "dtype", "device")):
            altered = [names[id(p)] for p, old, new in rows if old[place] != new[place]]
            if altered:
                yield f"{what} of {_list(altered)} has changed"


def _list(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_MAX_NAMES]))
    return f"{shown} and {len(names) - _MAX_NAMES} more" * (len(names) > _MAX_NAMES) or shown
