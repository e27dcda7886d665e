"""The credit table: which local loss trains which layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from localprop.errors import check


class Entry(NamedTuple):
    """What one loss does to one layer: its error passes through and, if it trains, the layer's gradient gains weight * error."""

    train: bool
    weight: float = 1.0


T = Entry(train=True)
PASS = Entry(train=False)
Row = tuple[Entry | None, ...]


@dataclass(frozen=True)
class CreditTable:
    """Which local loss trains which layers: one row per loss, one column per layer. Checked on construction.

    Loss k sits at the end of module `at[k]`; its error starts there and travels back, layer by layer. Usually there is one
    loss per module, in order; the last one is the task's. An entry is `T` (the loss
    trains the layer), `PASS` (its error passes through, the layer's parameters are not touched) or None (no error). A loss
    whose row is empty is neither built nor run. str() draws the table: T trained, p passed, . no error, | a cut; other
    weights than 1 get a letter with a legend.

    Attributes:
        sizes: the number of layers of each module.
        rows: the entries, one row per loss.
        at: the module at whose end each loss sits; by default loss k at module k.

    Raises:
        BadInput: an error that would have to jump over a layer, start elsewhere than at its loss, or lead nowhere; a layer
            that nothing trains; all problems at once, with the table drawn.

    Example:
        >>> print(CreditTable((1, 2), ((T, None, None), (None, T, T))))
        loss0 T|..
        loss1 .|TT
    """

    sizes: tuple[int, ...]
    rows: tuple[Row, ...]
    at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.at:
            object.__setattr__(self, "at", tuple(range(len(self.rows))))
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
        last = len(self.sizes) - 1
        if self.at == tuple(range(len(self.rows))) and len(self.rows) != last + 1:
            yield f"{len(self.rows)} rows for {last + 1} modules: there must be one row per loss, one loss per module."
            return
        if (
            len(self.rows) != len(self.at)
            or list(self.at) != sorted(self.at)
            or not set(self.at) <= set(range(last + 1))
        ):
            yield (
                f"{len(self.rows)} rows at the ends of the modules {self.at}, of {last + 1} modules: there must be one row per "
                "loss, each at a module, in the order of the modules."
            )
            return
        if self.at.count(last) != 1:
            yield f"{self.at.count(last)} losses at the last module, but there must be one, the task's."
        layers = sum(self.sizes)
        for k, row in enumerate(self.rows):
            if len(row) != layers:
                yield f"Row {k} has {len(row)} entries for {layers} layers: there must be one per layer."
            else:
                yield from self._row_problems(k, row)
        if all(len(row) == layers for row in self.rows):
            for layer in range(layers):
                if not any(entry and entry.train for entry in self.column(layer)):
                    yield f"Layer {layer} is trained by no loss: give it a T in one row."

    def _row_problems(self, k: int, row: Row) -> Iterator[str]:
        touched = [layer for layer, entry in enumerate(row) if entry is not None]
        if not touched:
            return
        end = self.ends[self.at[k]]
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
