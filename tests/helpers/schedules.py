"""Credit tables, partitions and wirings to test schedules with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import hypothesis.strategies as st
import torch

import localprop as lp
from localprop.rule.credit import Credit
from localprop.rule.table import PASS, Entry, T
from localprop.schedule.wire import wire
from localprop.schedule.wiring import Wiring
from tests.helpers.reference import tanh_mlp


@cache
def mlp_layers(count: int) -> lp.Layers:
    return lp.layers_of(tanh_mlp(layers=count), torch.zeros(2, 6))


def wire_mlp(
    credit: Credit, count: int = 12, modules: int = 4, *, weight_gradients: str = "once"
) -> Wiring:
    """The wiring of an MLP of `count` layers."""
    partition = lp.Partition.uniform(mlp_layers(count), modules)
    return wire(lp.Rule(credit), partition, weight_gradients=weight_gradients)


Tie = tuple[int, int]  # two layers that share a weight


def partition_for(table: lp.CreditTable, ties: Iterable[Tie] = ()) -> lp.Partition:
    """An MLP that has as many layers and modules as a table, with some weights in two layers."""
    starts = tuple(end + 1 for end in table.ends[:-1])
    layers = mlp_layers(sum(table.sizes))
    parameters = list(layers.parameters)
    for one, other in ties:
        parameters[other] = (parameters[one][0], *parameters[other][1:])
    return lp.Partition(replace(layers, parameters=tuple(parameters)), starts)


def wiring_of(
    table: lp.CreditTable, ties: Iterable[Tie] = (), *, weight_gradients: str = "once"
) -> Wiring:
    """The wiring of an MLP that fits a table."""
    partition = partition_for(table, ties)
    return wire(lp.Rule(lambda _: table), partition, weight_gradients=weight_gradients)


# --- what holds of any table ------------------------------------------------------------------

WEIGHTS = [0.25, 0.5, 1.0, 2.0]  # powers of two, so that products are exact

Row = list[Entry | None]


@st.composite
def tables(draw: st.DrawFn) -> lp.CreditTable:
    """Any valid table with one loss per module.

    Each loss reaches back over some layers, trains the farthest, and trains or passes the others.
    """
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    count, rows = sum(sizes), list[Row]()
    entry = st.one_of(st.just(PASS), st.builds(Entry, st.just(True), st.sampled_from(WEIGHTS)))
    for k in range(len(sizes)):
        end = sum(sizes[: k + 1])
        reach = draw(st.integers(0, end))
        reached = draw(st.lists(entry, min_size=reach, max_size=reach))
        if reached and not reached[0].train:
            reached[0] = T
        rows.append([*[None] * (end - reach), *reached, *[None] * (count - end)])
    _train_the_rest(rows)
    return lp.CreditTable(tuple(sizes), tuple(map(tuple, rows)))


@st.composite
def ties_on_ranks(draw: st.DrawFn, table: lp.CreditTable, cuts: set[int]) -> list[Tie]:
    """Any pairs of layers that one rank has, if ranks begin at the modules `cuts`."""
    module_of = [module for module, size in enumerate(table.sizes) for _ in range(size)]
    rank_of = [sum(cut <= module for cut in cuts) for module in module_of]
    layers = range(len(rank_of))
    pairs = [(a, b) for a in layers for b in layers if a < b and rank_of[a] == rank_of[b]]
    return draw(st.lists(st.sampled_from(pairs), max_size=3)) if pairs else []


def _train_the_rest(rows: list[Row]) -> None:
    """Let the last loss train the layers that no loss trains."""
    last = rows[-1]
    for layer in range(len(last)):
        if any(entry is not None and entry.train for entry in (row[layer] for row in rows)):
            continue
        last[layer] = T
        for behind in range(layer + 1, len(last)):  # the gradient must not skip a layer
            if last[behind] is None:
                last[behind] = T
