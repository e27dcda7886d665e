"""Which layers should run again: the least operations within so many bytes.

Two dynamic programmes over the layers of a chain. Their state is the bytes that are left beside
what the layers before hold, so one table answers every budget::

    one level   V[i][m]      a layer is stored; or a stretch i..j keeps its input and runs again
    nested      C[s][t][m]   a layer is stored; or x_k is kept, k..t done, and s..k run again,
                             by the same choice (Herrmann et al. 2019, arXiv 1911.13214)

Bytes are rounded up to buckets. What a table says is a bound: replays say what a plan takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from localprop.cost.layer_costs import Breaks, LayerCosts, ScaledCosts
from localprop.network.recomputed import Stretch

_INFINITE = np.inf


class ChainLayer(NamedTuple):
    """What a layer of a chain takes, in bytes.

    Attributes:
        output: what it returns.
        saved: kept for its backward, its input apart.
        rest: kept of that where the layer runs again alone.
        forward: while it runs and keeps that, at most.
        passing: while it runs and keeps nothing.
        backward: while its backward runs, at most, beside what it has saved and the gradient.
        flops: operations of its forward.
        may_follow: whether it may run again in one stretch with the layer before.
        may_lead: whether it may run again in one stretch with the layer after.
    """

    output: int
    saved: int
    rest: int
    forward: int
    passing: int
    backward: int
    flops: int
    may_follow: bool
    may_lead: bool


def list_chain(costs: LayerCosts | ScaledCosts, layers: range, breaks: Breaks) -> list[ChainLayer]:
    """The figures of some layers.

    Args:
        costs: of the network's layers.
        layers: neighbours.
        breaks: where a stretch cannot go on.
    """
    chain = []
    for i in layers:
        stored, again = costs.read("whole")[i], costs.read("whole", recomputed=True)[i]
        chain.append(
            ChainLayer(
                output=stored.output,
                saved=stored.forward.kept + stored.output * stored.forward.keeps_output,
                rest=again.forward.kept,
                forward=stored.forward.peak,
                passing=again.forward.peak,
                backward=stored.backwards[0].peak,
                flops=stored.forward.flops,
                may_follow=i not in breaks.before and i not in breaks.within,
                may_lead=i not in breaks.within,
            )
        )
    return chain


class Grid(NamedTuple):
    """Bytes in buckets.

    Attributes:
        bucket: bytes of one.
        size: their number.
    """

    bucket: float
    size: int

    @classmethod
    def over(cls, chains: Iterable[Sequence[ChainLayer]], count: int) -> Grid:
        """Buckets up to what storing all layers of the largest chain takes."""
        return cls(max(map(_bound_bytes, chains)) / count, count)

    def count_buckets(self, nbytes: float) -> int:
        """The buckets of so many bytes, rounded up."""
        return int(np.ceil(nbytes / self.bucket - 1e-9))


def _bound_bytes(chain: Sequence[ChainLayer]) -> int:
    stored = sum(each.saved + each.output for each in chain)
    return stored + max(each.backward + each.forward + 2 * each.output for each in chain)


def list_plans(
    chains: Sequence[Sequence[ChainLayer]],
    starts: Sequence[int],
    *,
    nested: bool = False,
    buckets: int = 600,
) -> list[tuple[Stretch, ...]]:
    """Plans for all chains of a network, from the least to the most bytes; each once.

    Args:
        chains: the layers of each segment, whose last layer is stored.
        starts: the number of the first layer of each.
        nested: whether stretches may lie in stretches.
        buckets: of bytes. More find more plans.
    """
    grid = Grid.over(chains, buckets)
    find = _find_nested if nested else _find_single
    pairs = zip(chains, starts, strict=True)
    tables = [find(chain, grid, start) for chain, start in pairs]
    # Where a chain does not fit, it takes as little as it can.
    least = [next((plan for plan in table if plan is not None), ()) for table in tables]
    plans = (
        tuple(
            stretch
            for plan, smallest in zip(row, least, strict=True)
            for stretch in (smallest if plan is None else plan)
        )
        for row in zip(*tables, strict=True)
    )
    return [*dict.fromkeys(plans)]


def _shift(values: NDArray[np.float64], keep: int, need: int) -> NDArray[np.float64]:
    """The costs after some buckets are kept, where at least some others were left."""
    shifted = np.full(len(values), _INFINITE)
    if keep < len(values):
        shifted[keep:] = values[: len(values) - keep]
    shifted[:need] = _INFINITE
    return shifted


def _find_single(
    chain: Sequence[ChainLayer], grid: Grid, first: int
) -> list[tuple[Stretch, ...] | None]:
    """The plan of one level for each number of buckets left; None where nothing fits."""
    buckets = grid.size
    count = len(chain)
    costs = np.full((count + 1, buckets + 1), _INFINITE)
    ends = np.zeros((count, buckets + 1), int)  # of a stretch; 0 where the layer is stored
    costs[count] = 0
    for i in range(count - 1, -1, -1):
        layer = chain[i]
        keep = layer.saved + layer.output
        need = max(layer.forward, keep + layer.output + layer.backward)
        costs[i] = _shift(costs[i + 1], grid.count_buckets(keep), grid.count_buckets(need))
        for j, need, flops in _list_stretches(chain, i):
            if grid.count_buckets(need) > buckets:
                break
            kept = _count_kept(chain, grid, i, j)
            again = _shift(costs[j], kept, grid.count_buckets(need)) + flops
            better = again < costs[i]
            costs[i][better], ends[i][better] = again[better], j
    return [
        tuple(_read_single(chain, grid, ends, left, first)) if costs[0][left] < _INFINITE else None
        for left in range(buckets + 1)
    ]


def _list_stretches(chain: Sequence[ChainLayer], start: int) -> Iterator[tuple[int, int, int]]:
    """The ends of stretches from a layer on, each with the bytes that it needs and operations."""
    flops = passing = top = before = 0
    needs: list[int] = []  # of the backward of each layer, beside what those before it have saved
    for j in range(start, len(chain) - 1):
        layer = chain[j]
        if j > start and not (chain[j - 1].may_lead and layer.may_follow):
            return
        flops += layer.flops
        previous = chain[j - 1].output if j > start else 0
        passing = max(passing, layer.passing + previous)
        top = max(top, before + layer.forward)
        needs.append(before + layer.saved + layer.output + layer.backward)
        before += layer.saved + layer.output
        yield j + 1, max(passing, layer.output + top, *needs), flops


def _count_kept(chain: Sequence[ChainLayer], grid: Grid, start: int, end: int) -> int:
    """The buckets that a stretch keeps: its output, and what a layer alone does not drop."""
    rest = chain[start].rest if end == start + 1 else 0
    return grid.count_buckets(chain[end - 1].output + rest)


def _read_single(
    chain: Sequence[ChainLayer], grid: Grid, ends: NDArray[np.int_], left: int, first: int
) -> Iterator[Stretch]:
    i = 0
    while i < len(chain):
        end = int(ends[i][left])
        if end:
            yield Stretch(range(first + i, first + end))
            left -= _count_kept(chain, grid, i, end)
            i = end
        else:
            left -= grid.count_buckets(chain[i].saved + chain[i].output)
            i += 1


def _find_nested(
    chain: Sequence[ChainLayer], grid: Grid, first: int
) -> list[tuple[Stretch, ...] | None]:
    """The plan with nested stretches for each number of buckets left; None where nothing fits."""
    count = len(chain)
    costs: dict[tuple[int, int], NDArray[np.float64]] = {}
    cuts: dict[tuple[int, int], NDArray[np.int_]] = {}  # kept inputs; 0 where a layer is stored
    for length in range(1, count + 1):
        for start in range(count - length + 1):
            last = start + length - 1
            costs[start, last], cuts[start, last] = _solve(chain, grid, costs, start, last)
    whole = costs[0, count - 1]
    return [
        tuple(_read_nested(chain, grid, cuts, 0, count - 1, left, first))
        if whole[left] < _INFINITE
        else None
        for left in range(grid.size + 1)
    ]


def _solve(
    chain: Sequence[ChainLayer],
    grid: Grid,
    costs: dict[tuple[int, int], NDArray[np.float64]],
    start: int,
    last: int,
) -> tuple[NDArray[np.float64], NDArray[np.int_]]:
    """The operations of forwards within start..last, by the buckets left, and the first choice."""
    layer = chain[start]
    gradient = chain[last].output if last < len(chain) - 1 else 0
    need = max(layer.forward + gradient, layer.saved + 2 * layer.output + layer.backward)
    keep = grid.count_buckets(layer.saved + layer.output)
    following = np.zeros(grid.size + 1) if start == last else costs[start + 1, last]
    shifted = _shift(following, 0 if start == last else keep, grid.count_buckets(need))
    best, cut = shifted + layer.flops, np.zeros(grid.size + 1, int)
    passing = flops = 0
    for k in range(start + 1, last + 1):
        before = chain[k - 1]
        if k > start + 1 and not (chain[k - 2].may_lead and before.may_follow):
            break
        previous = chain[k - 2].output if k > start + 1 else 0
        passing = max(passing, before.passing + previous + gradient)
        flops += before.flops
        need_buckets = grid.count_buckets(passing)
        if need_buckets > grid.size:
            break
        keep = _count_kept(chain, grid, start, k)
        after = _shift(costs[k, last], keep, need_buckets)
        other = after + costs[start, k - 1] + flops
        better = other < best
        best[better], cut[better] = other[better], k
    return best, cut


def _read_nested(
    chain: Sequence[ChainLayer],
    grid: Grid,
    cuts: dict[tuple[int, int], NDArray[np.int_]],
    start: int,
    last: int,
    left: int,
    first: int,
) -> Iterator[Stretch]:
    while start < last:
        k = int(cuts[start, last][left])
        if k:
            inner = tuple(_read_nested(chain, grid, cuts, start, k - 1, left, first))
            yield Stretch(range(first + start, first + k), inner)
            left -= _count_kept(chain, grid, start, k)
            start = k
        else:
            left -= grid.count_buckets(chain[start].saved + chain[start].output)
            start += 1
