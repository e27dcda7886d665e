"""Credit tables and schedules as text, and what must hold of any of them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from reference import tanh_mlp

import localprop as lp
from localprop.rule.table import PASS, Entry, T
from localprop.step.schedule import Action, Op
from localprop.step.wiring import Wiring, wire


@cache
def layers(count: int) -> lp.Layers:
    return lp.layers_of(tanh_mlp(layers=count), torch.zeros(2, 6))


def wired(credit: lp.Credit, count: int = 12, modules: int = 4) -> Wiring:
    partition = lp.Partition.uniform(layers(count), modules)
    return wire(lp.Rule(credit), partition, task=lp.CrossEntropy())


# --- as text ----------------------------------------------------------------------------------------------------------------

# Four modules of three layers.
TABLES = {
    lp.Own(): """
loss0 TTT|...|...|...
loss1 ...|TTT|...|...
loss2 ...|...|TTT|...
loss3 ...|...|...|TTT""",
    lp.BackwardLinks(layers=1): """
loss0 TTT|...|...|...
loss1 ..T|TTT|...|...
loss2 ...|..T|TTT|...
loss3 ...|...|..T|TTT""",
    lp.Interlocked(wise=2): """
loss0 ...|...|...|...
loss1 TTT|ppp|...|...
loss2 ...|TTT|ppp|...
loss3 ...|...|TTT|TTT""",
    lp.EndToEnd(): """
loss0 ...|...|...|...
loss1 ...|...|...|...
loss2 ...|...|...|...
loss3 TTT|TTT|TTT|TTT""",
    lp.Interlocked(wise=3): """
loss0 ...|...|...|...
loss1 ...|...|...|...
loss2 TTT|ppp|ppp|...
loss3 ...|TTT|TTT|TTT""",
    lp.Own(joined=1): """
loss0 TTT|...|...|...
loss1 ...|TTT|...|...
loss2 ...|...|...|...
loss3 ...|...|TTT|TTT""",
    lp.BackwardLinks(layers=2, weight=0.5): """
loss0 TTT|...|...|...
loss1 .aa|TTT|...|...
loss2 ...|.aa|TTT|...
loss3 ...|...|.aa|TTT
where a = T(0.5)""",
    lp.BackwardLinks(layers=0): """
loss0 TTT|...|...|...
loss1 ...|TTT|...|...
loss2 ...|...|TTT|...
loss3 ...|...|...|TTT""",
}

SCHEDULES = {
    lp.Own(): "0F 0L 0H 0B0 0S 1F 1L 1H 1B0 1S 2F 2L 2H 2B0 2S 3F 3L 3B0 3S",
    lp.BackwardLinks(layers=1): (
        "0F 1F 1L 1H 1B0 0B0 0S 2F 3F 3L 3H 3B0 2B0 2S 1B1 1S 4F 5F 5L 5H 5B0 4B0 4S 3B1 3S 6F 6L 6B0 6S 5B1 5S"
    ),
    lp.Interlocked(wise=2): "0F 1F 1L 1H 1B0 0B0 0S 2F 2L 2H 2B0 1B1 1S 3F 3L 3B0 3S 2B1 2S",
    lp.EndToEnd(): "0F 1F 2F 3F 3L 3B0 3S 2B0 2S 1B0 1S 0B0 0S",
    lp.Own(joined=1): "0F 0L 0H 0B0 0S 1F 1L 1H 1B0 1S 2F 3F 3L 3B0 3S 2B0 2S",
}


@pytest.mark.parametrize("credit", TABLES, ids=str)
def test_tables_as_text(credit: lp.Credit) -> None:
    table = credit(lp.Partition.uniform(layers(12), 4))
    assert str(table) == TABLES[credit].strip()
    assert table.sizes == (3, 3, 3, 3)
    assert table.ends == (2, 5, 8, 11)


def test_what_a_table_knows() -> None:
    table = lp.Interlocked(2)(lp.Partition.uniform(layers(12), 4))
    assert table.losses == (1, 2, 3)
    assert [table.reach(k) for k in range(4)] == [0, 6, 6, 6]
    assert table.column(4) == (None, PASS, T, None)


@pytest.mark.parametrize("credit", SCHEDULES, ids=str)
def test_schedules_as_text(credit: lp.Credit) -> None:
    assert str(lp.Schedule.of(wired(credit))) == SCHEDULES[credit]


def test_a_backward_link_cuts_modules_into_body_and_tail() -> None:
    segments = wired(lp.BackwardLinks(1)).segments
    assert [(list(s.layers), s.module, s.inlet) for s in segments] == [
        ([0, 1], 0, True),
        ([2], 0, False),
        ([3, 4], 1, True),
        ([5], 1, False),
        ([6, 7], 2, True),
        ([8], 2, False),
        ([9, 10, 11], 3, True),
    ]


def test_a_weight_rides_on_the_edge_across_the_cut() -> None:
    """Flows say so: the linked error is scaled once, where it leaves module 1, and not per layer."""
    flows = wired(lp.BackwardLinks(2, 0.5)).flows
    assert [(sorted(f.losses), f.train, f.onward, f.scale) for f in flows[2]] == [([1], True, 1, 0.5)]
    assert [(sorted(f.losses), f.train, f.onward, f.scale) for f in flows[1]] == [
        ([0], True, 0, 1.0),
        ([1], True, None, 1.0),
    ]


def test_errors_with_equal_paths_travel_together() -> None:
    """Three losses on the way back through one module: one backward, not three."""
    rows = ((T, None, None), (T, T, None), (T, T, T))
    flows = wired(lambda partition: lp.CreditTable((1, 1, 1), rows), count=3, modules=3).flows
    assert [[sorted(flow.losses) for flow in own] for own in flows] == [[[0, 1, 2]], [[1, 2]], [[2]]]


def test_recomputed_segments_run_again_right_before_their_first_backward() -> None:
    schedule = lp.Schedule.of(wired(lp.EndToEnd()), recomputed=frozenset({0, 1, 2}))
    assert str(schedule) == "0F 1F 2F 3F 3L 3B0 3S 2F 2B0 2S 1F 1B0 1S 0F 0B0 0S"
    schedule = lp.Schedule.of(wired(lp.Interlocked(2)), recomputed=frozenset({1}))
    assert str(schedule) == "0F 1F 1L 1H 1F 1B0 0B0 0S 2F 2L 2H 2B0 1B1 1S 3F 3L 3B0 3S 2B1 2S"


def test_microbatches_accumulate_and_step_once() -> None:
    schedule = lp.Schedule.of(wired(lp.Own(), modules=2), microbatches=2)
    assert str(schedule) == "0F 0L 0B0 1F 1L 1B0 0F/1 0L/1 0H 0B0/1 0S 1F/1 1L/1 1B0/1 1S"
    schedule = lp.Schedule.of(wired(lp.EndToEnd(), modules=2), microbatches=2, recomputed=frozenset({0}))
    assert str(schedule) == "0F 1F 1L 1B0 0F 0B0 0F/1 1F/1 1L/1 1B0/1 1S 0F/1 0B0/1 0S"


# --- what holds of any table ------------------------------------------------------------------------------------------------

WEIGHTS = [0.25, 0.5, 1.0, 2.0]  # powers of two, so that products are exact


@st.composite
def tables(draw: st.DrawFn) -> lp.CreditTable:
    """Any valid table: each loss reaches back over some layers, trains the farthest, and trains or passes the others."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    count, rows = sum(sizes), []
    entry = st.one_of(st.just(PASS), st.builds(Entry, st.just(True), st.sampled_from(WEIGHTS)))
    for k in range(len(sizes)):
        end = sum(sizes[: k + 1])
        reach = draw(st.integers(0, end))
        row: list[Entry | None] = [None] * count
        row[end - reach : end] = draw(st.lists(entry, min_size=reach, max_size=reach))
        if reach and not row[end - reach].train:
            row[end - reach] = T
        rows.append(row)
    for layer in range(count):  # the last loss takes what nothing trains
        if not any(row[layer] is not None and row[layer].train for row in rows):
            last = rows[-1]
            last[layer:] = [T if i == layer or e is None else e for i, e in enumerate(last[layer:], layer)]
    return lp.CreditTable(tuple(sizes), tuple(map(tuple, rows)))


def wiring_of(table: lp.CreditTable) -> Wiring:
    ends = [end + 1 for end in table.ends[:-1]]
    partition = lp.Partition(layers(sum(table.sizes)), tuple(ends))
    return wire(lp.Rule(lambda partition: table), partition, task=lp.CrossEntropy())


def simulate(wiring: Wiring, schedule: lp.Schedule) -> list[dict[int, float]]:
    """Run a schedule on symbols: how much of each loss's error every segment has gained. Order is checked on the way."""
    gained: list[dict[int, float]] = [Counter() for _ in wiring.segments]
    errors: dict[tuple[int, int, int], dict[int, float]] = {}
    done: set[Action] = set()
    stepped: set[int] = set()

    def deliver(segment: int, flow: int, m: int, error: dict[int, float], scale: float) -> None:
        assert Action(Op.B, segment, flow, m) not in done, "an error that comes too late"
        waiting = errors.setdefault((segment, flow, m), Counter())
        for loss, amount in error.items():
            waiting[loss] += amount * scale

    for action in schedule:
        op, s, f, m, *_ = action
        if op is Op.F:
            assert s == 0 or Action(Op.F, s - 1, None, m) in done
        if op is Op.L:
            assert Action(Op.F, s, None, m) in done
            objective = next(o for o in wiring.objectives if o.segment == s)
            if objective.flow is not None:
                deliver(s, objective.flow, m, {objective.loss: 1.0}, objective.scale)
        if op is Op.B:
            assert s not in stepped, "a backward through weights that have moved"
            flow, error = wiring.flows[s][f], errors.pop((s, f, m))
            assert flow.losses == set(error)
            for loss, amount in error.items() if flow.train else ():
                gained[s][loss] += amount
            if flow.onward is not None:
                deliver(s - 1, flow.onward, m, error, flow.scale)
        if op is Op.S:
            assert s not in stepped
            stepped.add(s)
        done.add(action)
    assert not errors, "an error that nobody used"
    assert stepped == {s for s, own in enumerate(gained) if own}
    return gained


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(1, 3), st.booleans())
def test_a_schedule_does_what_its_table_says(table: lp.CreditTable, microbatches: int, recompute: bool) -> None:
    """Every layer gains weight * error of each loss that trains it, and of no other; each segment steps once, last."""
    wiring = wiring_of(table)
    again = frozenset(range(len(wiring.segments) - 1)) if recompute else frozenset()
    schedule = lp.Schedule.of(wiring, microbatches, again)
    gained = simulate(wiring, schedule)
    for segment, own in zip(wiring.segments, gained, strict=True):
        for layer in segment.layers:
            entries = enumerate(table.column(layer))
            expected = {k: e.weight * microbatches for k, e in entries if e is not None and e.train}
            assert own == expected


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(1, 3), st.booleans())
def test_counts_and_order_of_any_schedule(table: lp.CreditTable, microbatches: int, recompute: bool) -> None:
    wiring = wiring_of(table)
    again = frozenset(range(len(wiring.segments) - 1)) if recompute else frozenset()
    schedule = lp.Schedule.of(wiring, microbatches, again)
    assert lp.Schedule.parse(str(schedule)) == schedule

    counts, parts, segments = Counter(schedule), range(microbatches), range(len(wiring.segments))
    repeated = {action for action, count in counts.items() if count > 1}
    assert repeated == {Action(Op.F, s, None, m) for s in again for m in parts}
    forwards = [action for action in dict.fromkeys(schedule) if action.op is Op.F]
    assert forwards == [Action(Op.F, s, None, m) for m in parts for s in segments]
    losses = {
        (objective.segment, m): Action(Op.L, objective.segment, None, m)
        for objective in wiring.objectives
        for m in parts
    }
    assert {action for action in schedule if action.op is Op.L} == set(losses.values())
    for objective in wiring.objectives:
        step = Action(Op.H, objective.segment)
        assert counts[step] == objective.trained
        if objective.trained:
            assert all(schedule.index(losses[objective.segment, m]) < schedule.index(step) for m in parts)


@settings(max_examples=30, deadline=None)
@given(tables())
def test_segments_are_the_runs_of_equal_columns(table: lp.CreditTable) -> None:
    segments = wiring_of(table).segments
    assert [layer for segment in segments for layer in segment.layers] == list(range(sum(table.sizes)))
    module = [k for k, size in enumerate(table.sizes) for _ in range(size)]
    for segment in segments:
        assert {(module[layer], table.column(layer)) for layer in segment.layers} == {
            (segment.module, table.column(segment.layers[0]))
        }
    for one, other in pairwise(segments):
        assert one.module != other.module or table.column(one.layers[-1]) != table.column(other.layers[0])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([lp.Own, lp.BackwardLinks, lp.Interlocked, lp.EndToEnd]),
    st.integers(0, 5),
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
)
def test_every_credit_on_every_partition(kind: type, number: int, sizes: tuple[int, int]) -> None:
    count, modules = sizes
    if kind is lp.EndToEnd:
        credit: lp.Credit = lp.EndToEnd()
    else:
        credit = kind({lp.Own: min(number, modules - 1), lp.Interlocked: number + 1}.get(kind, number))
    wiring = wired(credit, count, modules)
    gained = simulate(wiring, lp.Schedule.of(wiring))
    trained = sum(len(segment.layers) for segment, own in zip(wiring.segments, gained, strict=True) if own)
    assert trained == count


# --- what is refused --------------------------------------------------------------------------------------------------------


def test_all_problems_of_a_table_at_once() -> None:
    negative = Entry(True, -1.0)
    rows = (
        (T, T, None, None, None, None),  # loss 0 sits at layer 1: fine
        (T, None, T, T, None, None),  # jumps over layer 1
        (None, None, None, None, PASS, negative),  # trains nothing behind the layer that it passes; a weight below zero
    )
    with pytest.raises(lp.BadInput) as caught:
        lp.CreditTable((2, 2, 2), rows)
    *problems, drawn = caught.value.problems
    assert problems == [
        "The error of loss 1 jumps over a layer: its entries must be next to each other.",
        "The error of loss 2 passes layer 4 and trains nothing behind it: end it at a T.",
        "Loss 2 trains layer 5 with weight -1.0: a weight must be positive and finite.",
        "Layer 4 is trained by no loss: give it a T in one row.",
    ]
    assert drawn.startswith("The credit table reads:\nloss0 TT|..|..\nloss1 T.|TT|..\nloss2 ..|..|p")


@pytest.mark.parametrize(
    ("sizes", "rows", "message"),
    [
        ((1, 1), ((T, None),), "1 rows for 2 modules"),
        ((1, 1), ((T,), (None, T)), "Row 0 has 1 entries for 2 layers"),
        ((1, 1), ((T, T), (None, T)), "Loss 0 sits at layer 0, but its error reaches layer 1"),
        ((2,), ((T, None),), "Loss 0 sits at layer 1, but its error reaches layer 0"),
        ((1, 1), ((None, None), (None, T)), "Layer 0 is trained by no loss"),
        ((1,), ((Entry(True, 0.0),),), "with weight 0.0"),
        ((1,), ((Entry(True, float("nan")),),), "with weight nan"),
    ],
)
def test_bad_tables(sizes: tuple[int, ...], rows: tuple[tuple[Entry | None, ...], ...], message: str) -> None:
    with pytest.raises(lp.BadInput, match=message):
        lp.CreditTable(sizes, rows)


@pytest.mark.parametrize("build", [lambda: lp.Own(-1), lambda: lp.BackwardLinks(-1), lambda: lp.Interlocked(0)])
def test_bad_counts_of_a_credit(build: type) -> None:
    with pytest.raises(lp.BadInput, match="must be"):
        build()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_weights_of_a_link(weight: float) -> None:
    with pytest.raises(lp.BadInput, match="positive and finite"):
        lp.BackwardLinks(1, weight)


def test_more_joined_modules_than_there_are() -> None:
    with pytest.raises(lp.BadInput, match="joined=4 modules before the last one, but there are only 3"):
        lp.Own(joined=4)(lp.Partition.uniform(layers(12), 4))


@pytest.mark.parametrize("text", ["3F", "3B1", "3B1/2", "10S", "0L/12", "0H"])
def test_actions_as_text(text: str) -> None:
    assert str(Action.parse(text)) == text


@pytest.mark.parametrize("text", ["F3", "3X", "3B", "3F1", "-1F", "3B1/", "3F/a", "3f", "", "3F 4F"])
def test_bad_actions(text: str) -> None:
    with pytest.raises(lp.BadInput, match="is no action: one reads like 3F"):
        Action.parse(text)


def test_bad_microbatches() -> None:
    with pytest.raises(lp.BadInput, match="microbatches=0"):
        lp.Schedule.of(wired(lp.Own()), microbatches=0)


def test_a_batch_smaller_than_its_parts() -> None:
    batch = torch.zeros(2, 6), torch.zeros(2, dtype=torch.long)
    learner = lp.Learner(
        tanh_mlp(),
        lp.greedy(),
        modules=2,
        microbatches=3,
        sample=batch,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )
    with pytest.raises(lp.BadInput, match="A batch of 2 cannot be split into 3 micro-batches"):
        learner.step(batch)
