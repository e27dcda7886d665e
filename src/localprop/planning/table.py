"""The table of a plan: a few of its ways, one a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from localprop.planning.accuracies import Accuracy
from localprop.planning.by_kind import BytesByKind
from localprop.planning.candidates import Way, keep_front
from localprop.planning.sizes import format_size

_UNKNOWN = [None] * len(BytesByKind._fields)
LEGEND = (
    "activations: with workspaces; time: operations of the plain loop, a lower bound: differences "
    "below 0.15 are ties; +: copies come on top; ~: replayed from what each layer costs, and not "
    "read by the engine."
)


def make_header(
    measured: Mapping[Way, float], accuracies: Mapping[Way, Accuracy]
) -> tuple[str, ...]:
    """The heads of the columns; those of measured times and of accuracies where there are some."""
    times = ("time", "measured") if measured else ("time",)
    first = "method", "modules", "recompute", "micro-batches", "peak"
    return *first, *BytesByKind._fields, *times, *(("accuracy %",) if accuracies else ()), ""


def choose_rows(ways: Sequence[Way], best: Way | None, fits: Callable[[Way], bool]) -> list[Way]:
    """The plain loop, and of each method the fastest way that fits, or else the smallest.

    Args:
        ways: all ways, the plain loop first.
        best: the way that is taken, which stands in the place of the same way unconfirmed.
        fits: whether a way fits the budget.
    """
    rows = [ways[0]]
    for kind in dict.fromkeys(map(_kind_of, ways)):
        front = keep_front(way for way in ways if _kind_of(way) == kind)
        rows.append(next((way for way in reversed(front) if fits(way)), front[0]))
    if best is not None:
        rows = [best if is_same(row, best) else row for row in rows]
    return list(dict.fromkeys(rows))


def is_same(one: Way, other: Way | None) -> bool:
    """Whether two ways differ only in whether an engine has read them, or they are atomic."""
    if other is None:
        return False
    return one.method == other.method and one.kwargs | {"atomic": other.atomic} == other.kwargs


def format_rows(
    rows: Iterable[Way],
    best: Way | None,
    fits: Callable[[Way], bool],
    split: Callable[[Way], BytesByKind | None],
    measured: Mapping[Way, float],
    accuracies: Mapping[Way, Accuracy],
) -> list[tuple[str, ...]]:
    """The cells below `make_header`.

    Args:
        rows: of `choose_rows`.
        best: the way that is taken.
        fits: whether a way fits the budget.
        split: what the bytes of a peak are for, where that is known.
        measured: times, where they were measured.
        accuracies: where benchmarks have them.
    """

    def list_known(way: Way) -> Iterator[str]:
        if measured:
            yield f"{measured[way]:.2f}" if way in measured else "-"
        if accuracies:
            yield str(accuracies.get(way, "-"))

    return [_format_row(way, best, fits(way), split(way), list_known(way)) for way in rows]


def _kind_of(way: Way) -> tuple[str, bool, str]:
    kind = "1 of n" if way.rerun.startswith("1 of") else way.rerun
    return way.method, way.microbatches > 1, kind


def _format_row(
    way: Way, best: Way | None, fits: bool, kinds: BytesByKind | None, known: Iterable[str]
) -> tuple[str, ...]:
    return (
        way.method,
        str(way.modules),
        way.rerun,
        str(way.microbatches),
        format_size(way.peak_bytes) + ("" if way.confirmed else " ~"),
        *("-" if nbytes is None else format_size(nbytes) for nbytes in kinds or _UNKNOWN),
        f"{way.time:.2f}{' +' if way.offload else ''}",
        *known,
        "◄" if is_same(way, best) else "fits" if fits else "",
    )
