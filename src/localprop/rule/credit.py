"""Credit: which local loss trains which layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from localprop.errors import check
from localprop.network.partition import Partition


class Entry(NamedTuple):
    """What one loss does to one layer: its error passes through and, if it trains, the layer's gradient gains weight * error."""

    train: bool
    weight: float = 1.0


T = Entry(train=True)
PASS = Entry(train=False)
_Row = tuple[Entry | None, ...]


@dataclass(frozen=True)
class CreditTable:
    """Which local loss trains which layers: one row per loss, one column per layer. Checked on construction.

    Loss k sits at the end of module k; its error starts there and travels back, layer by layer. An entry is `T` (the loss
    trains the layer), `PASS` (its error passes through, the layer's parameters are not touched) or None (no error). A loss
    whose row is empty is neither built nor run. str() draws the table: T trained, p passed, . no error, | a cut; other
    weights than 1 get a letter with a legend.

    Attributes:
        sizes: the number of layers of each module.
        rows: the entries, one row per loss.

    Raises:
        BadInput: an error that would have to jump over a layer, start elsewhere than at its loss, or lead nowhere; a layer
            that nothing trains; all problems at once, with the table drawn.

    Example:
        >>> print(CreditTable((1, 2), ((T, None, None), (None, T, T))))
        loss0 T|..
        loss1 .|TT
    """

    sizes: tuple[int, ...]
    rows: tuple[_Row, ...]

    def __post_init__(self) -> None:
        found = tuple(self._problems())
        check([*found, f"The credit table reads:\n{self}"] if found else [])

    def __str__(self) -> str:
        letters: dict[float, str] = {}
        lines = [self._drawn(k, letters) for k in range(len(self.rows))]
        legend = [f"{letter} = T({weight:g})" for weight, letter in letters.items()]
        return "\n".join([*lines, *([f"where {', '.join(legend)}"] if legend else [])])

    def _drawn(self, k: int, letters: dict[float, str]) -> str:
        marks = [_mark(entry, letters) for entry in self.rows[k]]
        cells, rest = [], iter(marks)
        for size in self.sizes:
            cells.append("".join(next(rest, "?") for _ in range(size)))
        return f"loss{k:<{len(str(len(self.rows) - 1))}} {'|'.join(cells)}"

    @property
    def ends(self) -> tuple[int, ...]:
        """The index of each module's last layer."""
        return tuple(sum(self.sizes[: k + 1]) - 1 for k in range(len(self.sizes)))

    @property
    def losses(self) -> tuple[int, ...]:
        """The losses that train something, in order."""
        return tuple(k for k, row in enumerate(self.rows) if any(row))

    @property
    def effective_modules(self) -> int:
        """How many modules learn apart from each other; neighbours whose layers all have the same credit count as one."""
        starts = [end + 1 - size for end, size in zip(self.ends, self.sizes, strict=True)]
        credit = [{self.column(layer) for layer in range(a, end + 1)} for a, end in zip(starts, self.ends, strict=True)]
        return 1 + sum(before != own for before, own in pairwise(credit))

    def column(self, layer: int) -> tuple[Entry | None, ...]:
        """What each loss does to a layer."""
        return tuple(row[layer] for row in self.rows)

    def reach(self, k: int) -> int:
        """The number of layers that the error of loss k travels."""
        return sum(entry is not None for entry in self.rows[k])

    def _problems(self) -> Iterator[str]:
        if len(self.rows) != len(self.sizes):
            yield f"{len(self.rows)} rows for {len(self.sizes)} modules: there must be one row per loss, one loss per module."
        layers = sum(self.sizes)
        for k, row in enumerate(self.rows):
            if len(row) != layers:
                yield f"Row {k} has {len(row)} entries for {layers} layers: there must be one per layer."
            elif k < len(self.sizes):
                yield from self._row_problems(k, row)
        if all(len(row) == layers for row in self.rows):
            for layer in range(layers):
                if not any(entry and entry.train for entry in self.column(layer)):
                    yield f"Layer {layer} is trained by no loss: give it a T in one row."

    def _row_problems(self, k: int, row: _Row) -> Iterator[str]:
        touched = [layer for layer, entry in enumerate(row) if entry is not None]
        if not touched:
            return
        end = self.ends[k]
        if touched[-1] != end:
            yield f"Loss {k} sits at layer {end}, but its error reaches layer {touched[-1]}: it must start at its own layer."
        if touched[-1] - touched[0] + 1 != len(touched):
            yield f"The error of loss {k} jumps over a layer: its entries must be next to each other."
        first = row[touched[0]]
        if first is not None and not first.train:
            yield f"The error of loss {k} passes layer {touched[0]} and trains nothing behind it: end it at a T."
        for layer in touched:
            entry = row[layer]
            if entry is not None and entry.train and not 0 < entry.weight < float("inf"):
                yield f"Loss {k} trains layer {layer} with weight {entry.weight}: a weight must be positive and finite."


def _mark(entry: Entry | None, letters: dict[float, str]) -> str:
    if entry is None:
        return "."
    if not entry.train:
        return "p"
    if entry.weight == 1:
        return "T"
    return letters.setdefault(entry.weight, "abcdefghijklmnoqrstuvwxyz"[len(letters) % 25])


class Credit(Protocol):
    """A way to give credit: from a partition to a table."""

    def __call__(self, partition: Partition) -> CreditTable:
        """The credit table of a partitioned network."""
        ...


def _table(partition: Partition, entry: _EntryAt) -> CreditTable:
    """A table from a function of (loss, layer, module of the layer)."""
    layers = range(len(partition.layers))
    modules = [partition.module_of(layer) for layer in layers]
    rows = tuple(tuple(entry(k, layer, modules[layer]) for layer in layers) for k in range(len(partition.modules)))
    return CreditTable(tuple(len(module) for module in partition.modules), rows)


class _EntryAt(Protocol):
    def __call__(self, loss: int, layer: int, module: int, /) -> Entry | None: ...


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
        layers: how many layers of the module before the error travels; never past that module.
        weight: what the linked error is multiplied by.

    Example (four modules of three layers)::

        BackwardLinks(layers=1)
        loss0 TTT|...|...|...
        loss1 ..T|TTT|...|...
        loss2 ...|..T|TTT|...
        loss3 ...|...|..T|TTT
    """

    layers: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        problems = [f"layers={self.layers} must be 0 or more layers."] if self.layers < 0 else []
        if not 0 < self.weight < float("inf"):
            problems.append(f"weight={self.weight} must be positive and finite (layers=0 means no link).")
        check(problems)

    def __call__(self, partition: Partition) -> CreditTable:
        ends = [module.stop for module in partition.modules]

        def entry(k: int, layer: int, module: int) -> Entry | None:
            linked = module == k - 1 and layer >= ends[module] - self.layers
            return T if module == k else Entry(train=True, weight=self.weight) if linked else None

        return _table(partition, entry)


@dataclass(frozen=True)
class Interlocked:
    """Each module is trained only by the loss `wise - 1` modules ahead, whose error passes through those between.

    Attributes:
        wise: how many modules an error travels; 1 is local, 2 pairwise, the number of modules end-to-end.

    Example (four modules of three layers)::

        Interlocked(wise=2)
        loss0 ...|...|...|...
        loss1 TTT|ppp|...|...
        loss2 ...|TTT|ppp|...
        loss3 ...|...|TTT|TTT
    """

    wise: int = 2

    def __post_init__(self) -> None:
        check([f"wise={self.wise} must be 1 or more modules."] if self.wise < 1 else [])

    def __call__(self, partition: Partition) -> CreditTable:
        last = len(partition.modules) - 1

        def entry(k: int, layer: int, module: int) -> Entry | None:
            trains = min(module + self.wise - 1, last)
            return T if k == trains else PASS if module <= k < trains else None

        return _table(partition, _without_empty_tails(entry, last, self.wise))


def _without_empty_tails(entry: _EntryAt, last: int, wise: int) -> _EntryAt:
    """Errors that would reach no layer to train are not sent: losses 0 .. wise - 2 train nothing (but the last one)."""
    return lambda k, layer, module: None if k < min(wise - 1, last) else entry(k, layer, module)


@dataclass(frozen=True)
class EndToEnd:
    """The last loss trains everything; there is no other."""

    def __call__(self, partition: Partition) -> CreditTable:
        last = len(partition.modules) - 1
        return _table(partition, lambda k, layer, module: T if k == last else None)
