"""Schedules as text, and what must hold of the schedule of any credit table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import localprop as lp
from localprop.rule.credit import Credit
from localprop.schedule.schedule import BACKWARDS, RECEIVES, SENDS, Action, Op
from localprop.schedule.sums import WEIGHT_GRADIENTS
from localprop.schedule.wiring import Wiring
from tests.helpers.reference import tanh_mlp
from tests.helpers.schedules import (
    tables,
    ties_on_ranks,
    wire_mlp,
    wiring_of,
)

# --- as text ----------------------------------------------------------------------------------

# Four modules of three layers.
SCHEDULES: dict[Credit, str] = {
    lp.LocalCredit(): "0F 0L 0H 0B 0S 1F 1L 1H 1B 1S 2F 2L 2H 2B 2S 3F 3L 3B 3S",
    lp.BackwardLinks(layers=1): (
        "0F 1F 1L 1H 1B.0 0B 0S 2F 3F 3L 3H 3B.0 2B 2S 1B.1 1S 4F 5F 5L 5H 5B.0 4B 4S 3B.1 3S "
        "6F 6L 6B 6S 5B.1 5S"
    ),
    lp.InterlockingCredit(
        wise=2
    ): "0F 1F 1L 1H 1B.0 0B 0S 2F 2L 2H 2B.0 1B.1 1S 3F 3L 3B 3S 2B.1 2S",
    lp.EndToEndCredit(): "0F 1F 2F 3F 3L 3B 3S 2B 2S 1B 1S 0B 0S",
    lp.LocalCredit(joined=1): "0F 0L 0H 0B 0S 1F 1L 1H 1B 1S 2F 3F 3L 3B 3S 2B 2S",
}


@pytest.mark.parametrize("credit", SCHEDULES, ids=str)
def test_schedules_as_text(credit: Credit) -> None:
    wiring = wire_mlp(credit, weight_gradients="each")
    assert str(lp.Schedule.compile(wiring)) == SCHEDULES[credit]


WEIGHTS_ONCE: dict[Credit, str] = {
    # Flow 1 ends in the tails: it has no backward of its own.
    lp.BackwardLinks(layers=1): (
        "0F 1F 1L 1H 1B.0 0B 0S 2F 3F 3L 3H 3B.0 2B 2S 1W 1S 4F 5F 5L 5H 5B.0 4B 4S 3W 3S "
        "6F 6L 6B 6S 5W 5S"
    ),
    # Of three flows two go onward.
    lp.InterlockingCredit(wise=3, combine="sum"): (
        "0F 0L 0H 1F 1L 1H 2F 2L 2H 2B.0 1B.0 0B 0S 3F 3L 3B 3S 2B.1 2S 1W 1S"
    ),
}


@pytest.mark.parametrize("credit", WEIGHTS_ONCE, ids=str)
def test_weights_once_as_text(credit: Credit) -> None:
    """The gradients of weights come after all backwards that keep theirs for them."""
    assert str(lp.Schedule.compile(wire_mlp(credit))) == WEIGHTS_ONCE[credit]


@pytest.mark.parametrize(
    "credit",
    [c for c in SCHEDULES if c != lp.BackwardLinks(layers=1)],  # here one flow trains a segment
    ids=str,
)
def test_rules_without_several_flows_have_one_schedule(credit: Credit) -> None:
    assert str(lp.Schedule.compile(wire_mlp(credit))) == SCHEDULES[credit]


def test_microbatches_accumulate_and_step_once() -> None:
    schedule = lp.Schedule.compile(wire_mlp(lp.LocalCredit(), modules=2), microbatches=2)
    assert str(schedule) == "0F 0L 0B 1F 1L 1B 0F1 0L1 0H 0B1 0S 1F1 1L1 1B1 1S"
    wiring = wire_mlp(lp.EndToEndCredit(), modules=2)
    schedule = lp.Schedule.compile(wiring, microbatches=2)
    assert str(schedule) == "0F 1F 1L 1B 0B 0F1 1F1 1L1 1B1 1S 0B1 0S"


# --- what holds of any table ------------------------------------------------------------------

Amounts = Mapping[int, float]  # how much of each loss's gradient


class SymbolicRun:
    """Runs a schedule on symbols, and checks the order on the way.

    Attributes:
        gained: for each segment, how much of each loss's gradient its parameters have gained.
    """

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self.gained: list[dict[int, float]] = [{} for _ in wiring.segments]
        self._waiting: dict[tuple[int, int, int], dict[int, float]] = {}
        self._kept: dict[tuple[int, int], dict[int, float]] = {}  # for W, by segment, micro-batch
        self._done: set[Action] = set()
        self._stepped: set[int] = set()

    def run(self, schedule: lp.Schedule) -> list[dict[int, float]]:
        for action in schedule:
            op, s, _, m, *_ = action
            if op is Op.F:
                assert s == 0 or Action(Op.F, s - 1, None, m) in self._done
            if op is Op.L:
                self._run_loss(s, m)
            if op is Op.B:
                self._run_backward(action)
            if op is Op.W:
                self._run_weights(s, m)
            if op is Op.S:
                assert s not in self._stepped
                self._stepped.add(s)
            self._done.add(action)
        assert not self._waiting, "a gradient that no backward uses"
        assert not self._kept, "a gradient that no weights use"
        assert self._stepped == {s for s, amounts in enumerate(self.gained) if amounts}
        return self.gained

    def _run_loss(self, s: int, m: int) -> None:
        assert Action(Op.F, s, None, m) in self._done
        objective = next(o for o in self._wiring.objectives if o.segment == s)
        if objective.flow is not None:
            self._deliver((s, objective.flow, m), {objective.loss: 1.0}, objective.scale)

    def _run_backward(self, action: Action) -> None:
        _, s, f, m, *_ = action
        assert s not in self._stepped, "a backward through weights that have moved"
        flow, amounts = self._wiring.flows[s][f or 0], self._waiting.pop((s, f or 0, m))
        assert flow.losses == set(amounts)
        if flow.train and s in self._wiring.weights_once:
            assert Action(Op.W, s, None, m) not in self._done, "a gradient that comes too late"
            add_amounts(self._kept.setdefault((s, m), {}), amounts, 1.0)
        elif flow.train:
            add_amounts(self.gained[s], amounts, 1.0)
        if flow.onward is not None:
            self._deliver((s - 1, flow.onward, m), amounts, flow.scale)

    def _run_weights(self, s: int, m: int) -> None:
        assert s not in self._stepped, "a backward through weights that have moved"
        add_amounts(self.gained[s], self._kept.pop((s, m)), 1.0)
        for number, flow in enumerate(self._wiring.flows[s]):
            if flow.onward is None:
                amounts = self._waiting.pop((s, number, m))
                assert flow.losses == set(amounts)
                add_amounts(self.gained[s], amounts, 1.0)

    def _deliver(self, to: tuple[int, int, int], amounts: Amounts, scale: float) -> None:
        s, f, m = to
        ends = self._wiring.flows[s][f].onward is None and s in self._wiring.weights_once
        backward = Action(Op.B, s, self._wiring.flow_number(s, f), m)
        reader = Action(Op.W, s, None, m) if ends else backward
        assert reader not in self._done, "a gradient that comes too late"
        add_amounts(self._waiting.setdefault(to, {}), amounts, scale)


def add_amounts(total: dict[int, float], amounts: Amounts, scale: float) -> None:
    for loss, amount in amounts.items():
        total[loss] = total.get(loss, 0.0) + amount * scale


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(1, 3), st.sampled_from(WEIGHT_GRADIENTS))
def test_a_schedule_does_what_its_table_says(
    table: lp.CreditTable, microbatches: int, weight_gradients: str
) -> None:
    """Every layer gains weight * gradient of each loss that trains it, and of no other.

    Each segment steps once, last.
    """
    wiring = wiring_of(table, weight_gradients=weight_gradients)
    gained = SymbolicRun(wiring).run(lp.Schedule.compile(wiring, microbatches))
    for segment, amounts in zip(wiring.segments, gained, strict=True):
        for layer in segment.layers:
            entries = enumerate(table.column(layer))
            expected = {k: e.weight * microbatches for k, e in entries if e is not None and e.train}
            assert amounts == expected


@settings(max_examples=100, deadline=None)
@given(st.data(), tables(), st.integers(1, 3), st.sampled_from(WEIGHT_GRADIENTS))
def test_a_tied_parameter_makes_no_other_wait(
    data: st.DataObject, table: lp.CreditTable, microbatches: int, weight_gradients: str
) -> None:
    """Its step comes after all its uses, and no action moves for that, but for this step where the
    gradients of the weights come later.
    """
    ties = data.draw(ties_on_ranks(table, set()))
    wiring = wiring_of(table, ties, weight_gradients=weight_gradients)
    untied = wiring_of(table, weight_gradients=weight_gradients)
    schedule = lp.Schedule.compile(wiring, microbatches)
    may_move = {Action(Op.S, step) for step, _ in wiring.tied.values() if wiring.weights_once}
    pair = schedule, lp.Schedule.compile(untied, microbatches)
    one, other = ([action for action in each if action not in may_move] for each in pair)
    assert one == other
    for step, layers in wiring.tied.values():
        users = {s for s, each in enumerate(wiring.segments) if {*layers} & {*each.layers}}
        backwards = [i for i, a in enumerate(schedule) if a.op in BACKWARDS and a.segment in users]
        assert max(backwards) < schedule.index(Action(Op.S, step))


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(1, 3))
def test_counts_and_order_of_any_schedule(table: lp.CreditTable, microbatches: int) -> None:
    wiring = wiring_of(table)
    schedule = lp.Schedule.compile(wiring, microbatches)
    assert lp.Schedule.parse(str(schedule)) == schedule

    counts, segments = Counter(schedule), range(len(wiring.segments))
    assert set(counts.values()) == {1}
    forwards = [action for action in schedule if action.op is Op.F]
    assert forwards == [Action(Op.F, s, None, m) for m in range(microbatches) for s in segments]
    ends = [objective.segment for objective in wiring.objectives]
    losses = {(s, m): Action(Op.L, s, None, m) for s in ends for m in range(microbatches)}
    assert {action for action in schedule if action.op is Op.L} == set(losses.values())
    for objective in wiring.objectives:
        step = Action(Op.H, objective.segment)
        assert counts[step] == objective.trained
        if objective.trained:
            own_losses = [losses[objective.segment, m] for m in range(microbatches)]
            assert max(map(schedule.index, own_losses)) < schedule.index(step)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([lp.LocalCredit, lp.BackwardLinks, lp.InterlockingCredit, lp.EndToEndCredit]),
    st.integers(0, 5),
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
)
def test_every_credit_on_every_partition(
    make_credit: type, number: int, sizes: tuple[int, int]
) -> None:
    count, modules = sizes
    credits: dict[type, Credit] = {
        lp.LocalCredit: lp.LocalCredit(min(number, modules - 1)),
        lp.BackwardLinks: lp.BackwardLinks(number),
        lp.InterlockingCredit: lp.InterlockingCredit(number + 1),
        lp.EndToEndCredit: lp.EndToEndCredit(),
    }
    wiring = wire_mlp(credits[make_credit], count, modules)
    gained = SymbolicRun(wiring).run(lp.Schedule.compile(wiring))
    pairs = zip(wiring.segments, gained, strict=True)
    assert sum(len(segment.layers) for segment, amounts in pairs if amounts) == count


# --- actions as text --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["3F", "3B", "3W2", "3B.1", "3B2.1", "10S", "0L12", "0L12.1", "0H"]
)
def test_actions_as_text(text: str) -> None:
    assert str(Action.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["F3", "3X", "3B.", "3SEND_F", "3F>1", "-1F", "3B1/", "3F/a", "3f", "", "3F 4F"]
)
def test_bad_actions(text: str) -> None:
    with pytest.raises(lp.BadInput, match="is no action: one reads like 3F"):
        Action.parse(text)


@given(
    st.sampled_from(Op),
    st.integers(0, 99),
    st.integers(0, 9),
    st.integers(0, 12),
    st.integers(0, 9),
    st.booleans(),
)
def test_every_action_is_read_as_it_is_printed(
    op: Op, s: int, flow: int, m: int, peer: int, deferred: bool
) -> None:
    with_flow, with_peer = op in (Op.B, Op.SEND_B, Op.RECV_B), op in SENDS or op in RECEIVES
    action = Action(op, s, flow if with_flow else None, m, peer if with_peer else None, deferred)
    assert Action.parse(str(action)) == action


# --- what is refused --------------------------------------------------------------------------


def test_bad_microbatches() -> None:
    with pytest.raises(lp.BadInput, match="microbatches=0"):
        lp.Schedule.compile(wire_mlp(lp.LocalCredit()), microbatches=0)


def test_a_batch_smaller_than_the_number_of_microbatches() -> None:
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
