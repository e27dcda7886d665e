"""Credit: the ways to fill a credit table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from localprop.errors import check
from localprop.network.partition import Partition
from localprop.rule.table import PASS, CreditTable, Entry, Row, T


class Credit(Protocol):
    """A way to give credit: from a partition to a table."""

    def __call__(self, partition: Partition) -> CreditTable:
        """The credit table of a partitioned network."""
        ...


class _EntryAt(Protocol):
    def __call__(self, loss: int, layer: int, module: int, /) -> Entry | None: ...


def _table(partition: Partition, entry: _EntryAt, at: tuple[int, ...] = ()) -> CreditTable:
    """A table from a function of (loss, layer, module of the layer)."""
    layers = range(len(partition.layers))
    modules = [partition.module_of(layer) for layer in layers]
    losses = range(len(at or partition.modules))
    rows = tuple(_trimmed(entry(k, layer, modules[layer]) for layer in layers) for k in losses)
    return CreditTable(tuple(len(module) for module in partition.modules), rows, at)


def _trimmed(entries: Iterable[Entry | None]) -> Row:
    """Without an end that trains nothing: an error is not sent where there is nothing to train."""
    row = list(entries)
    for layer, entry in enumerate(row):
        if entry is not None and entry.train:
            break
        row[layer] = None
    return tuple(row)


_COMBINATIONS = ("sum", "only", "mean")


def _combination_problems(combine: str) -> list[str]:
    return [] if combine in _COMBINATIONS else [f"combine={combine!r} must be one of {', '.join(_COMBINATIONS)}."]


@dataclass(frozen=True)
class Own:
    """Each loss trains its own module; the last one also the `joined` modules before its own, which have no loss.

    Attributes:
        joined: how many modules before the last one are trained by the last loss.

    Example (four modules of three layers)::

        Own()                          Own(joined=1)
        loss0 TTT|...|...|...          loss0 TTT|...|...|...
        loss1 ...|TTT|...|...          loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...          loss2 ...|...|...|...
        loss3 ...|...|...|TTT          loss3 ...|...|TTT|TTT
    """

    joined: int = 0

    def __post_init__(self) -> None:
        check([f"joined={self.joined} must be 0 or more modules."] if self.joined < 0 else [])

    def __call__(self, partition: Partition) -> CreditTable:
        last = len(partition.modules) - 1
        check(
            [f"joined={self.joined} modules before the last one, but there are only {last}: use more modules."]
            if self.joined > last
            else []
        )
        return _table(partition, lambda k, layer, module: T if k == self._loss_of(module, last) else None)

    def _loss_of(self, module: int, last: int) -> int:
        return last if module >= last - self.joined else module


@dataclass(frozen=True)
class BackwardLinks:
    """Each loss trains its own module and, over a backward link, the last layers of the module before.

    Attributes:
        layers: how far the error travels beyond its own module; a number beyond the size of a module links all of it.
        weight: what the linked error is multiplied by.
        unit: what is counted: "layers" of the network (residual blocks), or "convs", weights on the longest path through a
            layer; a layer that the link reaches is trained whole.
        spill: whether the link goes on over further cuts if the module before is shorter than the link.
        combine: what a layer gets that a link reaches: the "sum" of its own loss and the linked one, the linked one "only",
            or their "mean".

    Raises:
        BadInput: a negative length, a weight that is not positive, unknown words.

    Example (four modules of three layers)::

        BackwardLinks(layers=1)           BackwardLinks(layers=4, spill=True)   BackwardLinks(layers=1, combine="only")
        loss0 TTT|...|...|...             loss0 TTT|...|...|...                 loss0 TTp|...|...|...
        loss1 ..T|TTT|...|...             loss1 TTT|TTT|...|...                 loss1 ..T|TTp|...|...
        loss2 ...|..T|TTT|...             loss2 ..T|TTT|TTT|...                 loss2 ...|..T|TTp|...
        loss3 ...|...|..T|TTT             loss3 ...|..T|TTT|TTT                 loss3 ...|...|..T|TTT
    """

    layers: int = 1
    weight: float = 1.0
    unit: str = "layers"
    spill: bool = False
    combine: str = "sum"

    def __post_init__(self) -> None:
        problems = [f"layers={self.layers} must be 0 or more {self.unit}."] if self.layers < 0 else []
        if not 0 < self.weight < float("inf"):
            problems.append(f"weight={self.weight} must be positive and finite (layers=0 means no link).")
        if self.unit not in ("layers", "convs"):
            problems.append(f"unit={self.unit!r} must be layers or convs.")
        check([*problems, *_combination_problems(self.combine)])

    def __call__(self, partition: Partition) -> CreditTable:
        losses = {k: self._linked(partition, k) for k in range(len(partition.modules))}
        linked = {layer: [k for k, own in losses.items() if layer in own] for layer in range(len(partition.layers))}

        def entry(k: int, layer: int, module: int) -> Entry | None:
            if k == module:
                return self._own(len(linked[layer]))
            share = 1 + len(linked[layer]) if self.combine == "mean" else 1
            return Entry(train=True, weight=self.weight / share) if k in linked[layer] else None

        return _table(partition, entry)

    def _own(self, links: int) -> Entry:
        """What a layer's own loss does to it, if so many links reach it."""
        if links and self.combine == "only":
            return PASS
        return Entry(train=True, weight=1 / (1 + links)) if self.combine == "mean" else T

    def _linked(self, partition: Partition, k: int) -> range:
        """The layers before module k that its loss reaches."""
        start = partition.modules[k].start
        first, left = start, self.layers
        while left > 0 and first > 0 and (self.spill or partition.module_of(first - 1) == k - 1):
            first -= 1
            left -= partition.layers.depths[first] if self.unit == "convs" else 1
        return range(first, start)


@dataclass(frozen=True)
class Interlocked:
    """Each module is trained by the loss `wise - 1` modules ahead, whose error passes through those between.

    Attributes:
        wise: how many modules an error travels; 1 is local, 2 pairwise, the number of modules end-to-end.
        combine: what trains a module: that farthest loss "only" (the published rule), or the "sum" or "mean" of all the
            losses from its own to that one.

    Raises:
        BadInput: less than 1 module, unknown words.

    Example (four modules of three layers)::

        Interlocked(wise=2)            Interlocked(wise=2, combine="sum")
        loss0 ...|...|...|...          loss0 TTT|...|...|...
        loss1 TTT|ppp|...|...          loss1 TTT|TTT|...|...
        loss2 ...|TTT|ppp|...          loss2 ...|TTT|TTT|...
        loss3 ...|...|TTT|TTT          loss3 ...|...|TTT|TTT
    """

    wise: int = 2
    combine: str = "only"

    def __post_init__(self) -> None:
        problems = [f"wise={self.wise} must be 1 or more modules."] if self.wise < 1 else []
        check([*problems, *_combination_problems(self.combine)])

    def __call__(self, partition: Partition) -> CreditTable:
        last = len(partition.modules) - 1

        def entry(k: int, layer: int, module: int) -> Entry | None:
            farthest = min(module + self.wise - 1, last)
            if not module <= k <= farthest:
                return None
            if self.combine == "only":
                return T if k == farthest else PASS
            return Entry(train=True, weight=1 / (farthest - module + 1)) if self.combine == "mean" else T

        return _table(partition, entry)


@dataclass(frozen=True)
class Windows:
    """Each loss trains a window of neighbouring modules; windows may overlap. Where no window ends there is no loss.

    Attributes:
        size: modules per window; the last one is shorter where they do not come out even.
        stride: modules from the beginning of one window to that of the next.

    Raises:
        BadInput: sizes below 1, or a stride that leaves modules between windows out.

    Example (four modules of three layers)::

        Windows(size=2)                Windows(size=2, stride=2)
        loss0 ...|...|...|...          loss0 ...|...|...|...
        loss1 TTT|TTT|...|...          loss1 TTT|TTT|...|...
        loss2 ...|TTT|TTT|...          loss2 ...|...|...|...
        loss3 ...|...|TTT|TTT          loss3 ...|...|TTT|TTT
    """

    size: int = 2
    stride: int = 1

    def __post_init__(self) -> None:
        problems = [f"size={self.size} must be 1 or more modules."] if self.size < 1 else []
        if not 1 <= self.stride <= max(self.size, 1):
            problems.append(f"stride={self.stride} must lie in 1..size, or modules between windows would have no loss.")
        check(problems)

    def __call__(self, partition: Partition) -> CreditTable:
        count = len(partition.modules)
        windows: dict[int, range] = {}
        for start in range(0, count, self.stride):
            window = range(start, min(start + self.size, count))
            windows.setdefault(window[-1], window)  # at the end of the network the first, longest one
        return _table(partition, lambda k, layer, module: T if module in windows.get(k, ()) else None)


@dataclass(frozen=True)
class OwnAndWindows:
    """Two losses at a module's end: the first trains the module itself, the second it and the modules before in a window.

    The first module has no loss and learns through the first windows. The last module's one loss is the task's, over the
    whole window.

    Attributes:
        size: modules per window.
        weight: what the task's error is multiplied by in the modules before the last.

    Raises:
        BadInput: a window of less than 2 modules, a weight that is not positive.

    Example (four modules of three layers)::

        OwnAndWindows()
        loss0 ...|TTT|...|...          own
        loss1 TTT|TTT|...|...          window
        loss2 ...|...|TTT|...          own
        loss3 ...|TTT|TTT|...          window
        loss4 ...|...|TTT|TTT          the task's
    """

    size: int = 2
    weight: float = 1.0

    def __post_init__(self) -> None:
        problems = [f"size={self.size} must be 2 or more modules."] if self.size < 2 else []
        if not 0 < self.weight < float("inf"):
            problems.append(f"weight={self.weight} must be positive and finite.")
        check(problems)

    def __call__(self, partition: Partition) -> CreditTable:
        last = len(partition.modules) - 1
        at = (*(module for module in range(1, last) for _ in range(2)), last)

        def entry(k: int, layer: int, module: int) -> Entry | None:
            end, window = at[k], k % 2 == 1 or at[k] == last
            reached = end - (self.size - 1 if window else 0) <= module <= end
            return Entry(True, self.weight if end == last > module else 1.0) if reached else None

        return _table(partition, entry, at)


@dataclass(frozen=True)
class EndToEnd:
    """The last loss trains everything; there is no other."""

    def __call__(self, partition: Partition) -> CreditTable:
        last = len(partition.modules) - 1
        return _table(partition, lambda k, layer, module: T if k == last else None)
