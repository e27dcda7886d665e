"""Credit: how a rule fills the credit table. Credit that a single method uses lives in its file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.network.partition import Partition
from localprop.rule.table import CreditTable, Entry, Row, T

__all__ = ["LocalCredit", "make_table"]


@runtime_checkable
class Credit(Protocol):
    """A way to assign credit: makes the credit table of a partition."""

    def __call__(self, partition: Partition) -> CreditTable:
        """Make the credit table of a partitioned network."""
        ...


class _MakeEntry(Protocol):
    def __call__(self, loss: int, layer: int, module: int, /) -> Entry | None: ...


def make_table(
    partition: Partition, make_entry: _MakeEntry, module_of_loss: tuple[int, ...] = ()
) -> CreditTable:
    """Make a credit table from a function that gives each entry.

    Entries at the start of a row that only pass the gradient on become None: no gradient travels to
    layers where it trains nothing.

    Args:
        partition: the partitioned network.
        make_entry: gives the entry of (loss, layer, module of the layer).
        module_of_loss: the module at whose end each loss is. By default loss k is at module k.

    Raises:
        BadInput: the table is not valid. See `CreditTable`.

    Example:
        >>> layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 32, 32))
        >>> partition = lp.Partition.uniform(layers, modules=2)
        >>> T = lp.Entry(train=True)
        >>> print(make_table(partition, lambda loss, layer, module: T if loss == module else None))
        loss0 TT|..
        loss1 ..|TT
    """
    layers = range(len(partition.layers))
    modules = [partition.module_of(layer) for layer in layers]
    losses = range(len(module_of_loss or partition.modules))
    rows = tuple(_trim(make_entry(k, layer, modules[layer]) for layer in layers) for k in losses)
    return CreditTable(tuple(len(module) for module in partition.modules), rows, module_of_loss)


def _trim(entries: Iterable[Entry | None]) -> Row:
    """Replace the entries before the first layer that the loss trains by None."""
    row = list(entries)
    for layer, entry in enumerate(row):
        if entry is not None and entry.train:
            break
        row[layer] = None
    return tuple(row)


_COMBINATIONS = ("sum", "only", "mean")


def find_combination_problems(combine: str) -> list[str]:
    """Find the problem of an argument `combine`, which says how a layer's losses are combined.

    Example:
        >>> find_combination_problems("max")
        ["combine='max' must be one of sum, only, mean."]
    """
    if combine in _COMBINATIONS:
        return []
    return [f"combine={combine!r} must be one of {', '.join(_COMBINATIONS)}."]


@check_arguments
@dataclass(frozen=True)
class LocalCredit:
    """Each loss trains its own module. The last loss also trains the `joined` modules before it.

    Attributes:
        joined: how many modules before the last one have no loss and are trained by the last loss.

    Raises:
        BadInput: `joined` is negative, or there are fewer modules before the last one.

    Example (four modules of three layers)::

        LocalCredit()                  LocalCredit(joined=1)
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
        if self.joined > last:
            raise BadInput(
                f"joined={self.joined} modules before the last one, but there are only {last}: "
                "use more modules."
            )

        def make_entry(k: int, layer: int, module: int) -> Entry | None:
            loss = last if module >= last - self.joined else module
            return T if k == loss else None

        return make_table(partition, make_entry)
