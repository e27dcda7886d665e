"""The credit table: which local loss trains which layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

from localprop.errors import check

__all__ = ["CreditTable", "Entry"]


class Entry(NamedTuple):
    """What one loss does to one layer. Its gradient passes through the layer in any case.

    Attributes:
        train: whether the loss trains the layer's parameters.
        weight: the factor of the loss's gradient when it is added to the parameters' gradients.
    """

    train: bool
    weight: float = 1.0


T = Entry(train=True)
PASS = Entry(train=False)
Row = tuple[Entry | None, ...]


@dataclass(frozen=True)
class CreditTable:
    """Which local loss trains which layers: a row for each loss, a column for each layer.

    Loss k is at the end of module `module_of_loss[k]`. Its gradient starts there and travels back,
    layer by layer. Usually there is one loss per module, in order, and the last one is the task's.
    A loss whose row is empty is neither built nor run. The table is checked on construction.

    An entry is one of these::

        T       the loss trains the layer
        PASS    its gradient passes through the layer, whose parameters stay untouched
        None    its gradient does not reach the layer

    str() draws the table: T trained, p passed, . not reached, | a cut. Weights other than 1 get a
    letter with a legend.

    Attributes:
        sizes: the number of layers of each module.
        rows: the entries, one row per loss.
        module_of_loss: the module at whose end each loss is. By default loss k is at module k.

    Raises:
        BadInput: a gradient would have to skip a layer, would start elsewhere than at its loss, or
            would train nothing at its end; or no loss trains a layer. The message has all problems
            and draws the table.

    Example:
        >>> print(CreditTable((1, 2), ((T, None, None), (None, T, T))))
        loss0 T|..
        loss1 .|TT
    """

    sizes: tuple[int, ...]
    rows: tuple[Row, ...]
    module_of_loss: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.module_of_loss:
            object.__setattr__(self, "module_of_loss", tuple(range(len(self.rows))))
        found = tuple(self._find_problems())
        check([*found, f"The credit table reads:\n{self}"] if found else [])

    def __str__(self) -> str:
        letters: dict[float, str] = {}
        lines = [self._format_row(k, letters) for k in range(len(self.rows))]
        if letters:
            legend = ", ".join(f"{letter} = T({weight:g})" for weight, letter in letters.items())
            lines.append(f"where {legend}")
        return "\n".join(lines)

    def _format_row(self, k: int, letters: dict[float, str]) -> str:
        marks = iter([_format_entry(entry, letters) for entry in self.rows[k]])
        modules = []
        for size in self.sizes:
            # A row that is too short is drawn as well, below the message about it.
            modules.append("".join(next(marks, "?") for _ in range(size)))
        digits = len(str(len(self.rows) - 1))
        return f"loss{k:<{digits}} {'|'.join(modules)}"

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The index of each module's last layer."""
        return tuple(size - 1 for size in accumulate(self.sizes))

    @cached_property
    def losses(self) -> tuple[int, ...]:
        """The losses that train something, in order."""
        return tuple(k for k, row in enumerate(self.rows) if any(row))

    @property
    def effective_modules(self) -> int:
        """The number of modules that learn apart from each other.

        Neighbours count as one if all of their layers have the same credit.
        """
        credits = []
        for end, size in zip(self.ends, self.sizes, strict=True):
            credits.append({self.column(layer) for layer in range(end + 1 - size, end + 1)})
        return 1 + sum(before != after for before, after in pairwise(credits))

    def column(self, layer: int) -> tuple[Entry | None, ...]:
        """What each loss does to a layer."""
        return tuple(row[layer] for row in self.rows)

    def reach(self, k: int) -> int:
        """The number of layers that the gradient of loss k travels through."""
        return sum(entry is not None for entry in self.rows[k])

    def _find_problems(self) -> Iterator[str]:
        modules, layers = len(self.sizes), sum(self.sizes)
        if problem := self._find_placement_problem(modules):
            yield problem
            return
        if (count := self.module_of_loss.count(modules - 1)) != 1:
            yield f"{count} losses at the last module, but there must be one, the task's."
        for k, row in enumerate(self.rows):
            if len(row) != layers:
                yield (
                    f"Row {k} has {len(row)} entries for {layers} layers: give one entry per layer."
                )
            else:
                yield from self._find_row_problems(k, row)
        if all(len(row) == layers for row in self.rows):
            for layer in range(layers):
                if not any(entry and entry.train for entry in self.column(layer)):
                    yield f"No loss trains layer {layer}: give it a T in one row."

    def _find_placement_problem(self, modules: int) -> str | None:
        """Find out whether rows and modules do not fit. Nothing else can be checked then."""
        rows, at = len(self.rows), self.module_of_loss
        if at == tuple(range(rows)) and rows != modules:
            return f"{rows} rows for {modules} modules: give one row per loss, one loss per module."
        in_order = list(at) == sorted(at)
        if rows != len(at) or not in_order or not set(at) <= set(range(modules)):
            return (
                f"{rows} rows with module_of_loss={at} for {modules} modules: give one row per "
                "loss, and each loss the number of a module, in the order of the modules."
            )
        return None

    def _find_row_problems(self, k: int, row: Row) -> Iterator[str]:
        reached = [layer for layer, entry in enumerate(row) if entry is not None]
        if not reached:
            return
        end = self.ends[self.module_of_loss[k]]
        if reached[-1] != end:
            yield (
                f"Loss {k} is at layer {end}, but its gradient starts at layer {reached[-1]}: "
                f"end its row at layer {end}."
            )
        if reached[-1] - reached[0] + 1 != len(reached):
            yield f"The gradient of loss {k} skips a layer: its entries must be consecutive."
        first = row[reached[0]]
        if first is not None and not first.train:
            yield (
                f"The gradient of loss {k} passes through layer {reached[0]} but trains nothing "
                "before it: begin its entries with a T."
            )
        for layer in reached:
            entry = row[layer]
            if entry is not None and entry.train and not 0 < entry.weight < float("inf"):
                yield (
                    f"Loss {k} trains layer {layer} with weight {entry.weight}: a weight must be "
                    "positive and finite."
                )


def _format_entry(entry: Entry | None, letters: dict[float, str]) -> str:
    """The letter of an entry. A new weight gets the next letter, which is added to `letters`."""
    if entry is None:
        return "."
    if not entry.train:
        return "p"
    if entry.weight == 1:
        return "T"
    # No p, which means PASS.
    return letters.setdefault(entry.weight, "abcdefghijklmnoqrstuvwxyz"[len(letters) % 25])
