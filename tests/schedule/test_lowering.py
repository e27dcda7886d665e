"""The list of actions of each rank: as text for small cases, and what must hold of any.

No process is started.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, TypedDict

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from torch import nn

import localprop as lp
from localprop.rule.credit import Credit
from localprop.schedule.lowering import ORDERS, find_max_in_flight, lower
from localprop.schedule.placement import Placement, estimate_module_costs
from localprop.schedule.schedule import (
    BACKWARDS,
    RECEIVES,
    REDUCES,
    SENDS,
    Action,
    ActionCost,
    Op,
    Schedule,
    find_dependencies,
    unroll,
)
from localprop.schedule.sums import WEIGHT_GRADIENTS
from localprop.schedule.wire import wire
from localprop.schedule.wiring import Wiring
from tests.helpers.parallel_run import ParallelRun
from tests.helpers.schedules import (
    partition_for,
    tables,
    ties_on_ranks,
    wire_mlp,
)

# --- as text ----------------------------------------------------------------------------------

# Two ranks; credit, layers, modules, micro-batches, order -> what ranks 0 and 1 run.
TEXTS: dict[str, tuple[Credit, int, int, int, str, str, str]] = {
    "greedy": (
        *(lp.LocalCredit(), 4, 4, 1, "1f1b"),
        "0F 0L 0H 0B 0S 1F 1SEND_F>1 1L 1H 1B 1S",
        "1RECV_F<0 2F 2L 2H 2B 2S 3F 3L 3B 3S",
    ),
    "greedy, 4 micro-batches": (
        *(lp.LocalCredit(), 2, 2, 4, "1f1b"),
        "0F 0SEND_F>1 0L 0B 0F1 0SEND_F1>1 0L1 0B1 0F2 0SEND_F2>1 0L2 0B2 0F3 0SEND_F3>1 0L3 0H "
        "0B3 0S",
        "0RECV_F<0 1F 1L 1B 0RECV_F1<0 1F1 1L1 1B1 0RECV_F2<0 1F2 1L2 1B2 0RECV_F3<0 1F3 1L3 1B3 "
        "1S",
    ),
    # Modules of two layers: the tail of module 0 waits for the gradient, its body goes on.
    "backlink": (
        *(lp.BackwardLinks(1), 4, 2, 1, "1f1b"),
        "0F 2RECV_B<1' 1B.1' 1S' 1F 1SEND_F>1 1L 1H 1B.0 0B 0S",
        "1RECV_F<0 2F 2L 2B 2SEND_B>0 2S",
    ),
    # The gradients of both losses make one flow, which waits for the remote one.
    "backlink over whole modules": (
        *(lp.BackwardLinks(1), 2, 2, 1, "1f1b"),
        "1RECV_B<1' 0B' 0S' 0F 0SEND_F>1 0L 0H",
        "0RECV_F<0 1F 1L 1B 1SEND_B>0 1S",
    ),
    "interlocking(2)": (
        *(lp.InterlockingCredit(2), 4, 4, 1, "1f1b"),
        "0F 2RECV_B.0<1' 1B.1' 1S' 1F 1SEND_F>1 1L 1H 1B.0 0B 0S",
        "1RECV_F<0 2F 2L 2H 2B.0 2SEND_B.0>0 3F 3L 3B 3S 2B.1 2S",
    ),
    "interlocking(3)": (
        *(lp.InterlockingCredit(3), 4, 4, 1, "1f1b"),
        "2RECV_B.0<1' 1B.0' 0B' 0S' 0F 2RECV_B.1<1' 1B.1' 1S' 1F 1SEND_F>1",
        "1RECV_F<0 2F 2L 2H 2B.0 2SEND_B.0>0 3F 3L 3B 3S 2B.1 2SEND_B.1>0 2S",
    ),
    "end_to_end": (
        *(lp.EndToEndCredit(), 4, 4, 1, "1f1b"),
        "2RECV_B<1' 1B' 1S' 0B' 0S' 0F 1F 1SEND_F>1",
        "1RECV_F<0 2F 3F 3L 3B 3S 2B 2SEND_B>0 2S",
    ),
    "end_to_end, 4 micro-batches": (  # two in flight on rank 0, one on rank 1
        *(lp.EndToEndCredit(), 2, 2, 4, "1f1b"),
        "1RECV_B2<1' 0B2' 1RECV_B3<1' 0B3' 0S' 0F 0SEND_F>1 0F1 0SEND_F1>1 1RECV_B<1 0B "
        "0F2 0SEND_F2>1 1RECV_B1<1 0B1 0F3 0SEND_F3>1",
        "0RECV_F<0 1F 1L 1B 1SEND_B>0 0RECV_F1<0 1F1 1L1 1B1 1SEND_B1>0 0RECV_F2<0 1F2 1L2 1B2 "
        "1SEND_B2>0 0RECV_F3<0 1F3 1L3 1B3 1SEND_B3>0 1S",
    ),
    "end_to_end, gpipe": (
        *(lp.EndToEndCredit(), 2, 2, 2, "gpipe"),
        "1RECV_B<1' 0B' 1RECV_B1<1' 0B1' 0S' 0F 0SEND_F>1 0F1 0SEND_F1>1",
        "0RECV_F<0 1F 1L 0RECV_F1<0 1F1 1B 1SEND_B>0 1L1 1B1 1SEND_B1>0 1S",
    ),
}


def balance(wiring: Wiring, stages: int) -> Placement:
    return Placement.balanced(wiring, stages, estimate_module_costs(wiring))


@pytest.mark.parametrize("name", TEXTS)
def test_rank_schedules_as_text(name: str) -> None:
    credit, layers, modules, microbatches, order, *expected = TEXTS[name]
    wiring = wire_mlp(credit, layers, modules, weight_gradients="each")
    placement = Placement.at(wiring, (modules // 2,))
    rank_schedules = lower(wiring, placement, microbatches, order=order)
    assert list(map(str, rank_schedules)) == expected


def test_weights_wait_while_gradients_travel() -> None:
    """Gradients leave for rank 0 before those of the weights are made."""
    wiring = wire_mlp(lp.InterlockingCredit(3, combine="sum"), 5, 5)
    rank_schedules = lower(wiring, Placement.at(wiring, (2,)))
    assert list(map(str, rank_schedules)) == [
        "2RECV_B.0<1' 1B.0' 0B' 0S' 0F 0L 0H 2RECV_B.1<1' 1W' 1S' 1F 1SEND_F>1 1L 1H",
        "1RECV_F<0 2F 2L 2H 2B.0 2SEND_B.0>0 3F 3L 3H 3B.0 2B.1 2SEND_B.1>0 4F 4L 4B 4S 3B.1 3S 2W "
        "2S",
    ]


def test_sums_over_replicas_as_text() -> None:
    """The last sum is awaited during the next batch."""
    wiring = wire_mlp(lp.LocalCredit(), 2, 2)
    (only,) = lower(wiring, Placement((range(2),)), replicas=2)
    assert str(only) == "0S' 0F 0L 0REDUCE_H 0B 0H 0REDUCE_S 1S' 1F 1L 1B 1REDUCE_S"


# --- what holds of any rank schedule ----------------------------------------------------------


class Options(TypedDict):
    """The options of `lower`."""

    order: str
    replicas: int
    cost: ActionCost | None


class LoweringCase(NamedTuple):
    """The arguments of `lower`."""

    wiring: Wiring
    placement: Placement
    microbatches: int
    options: Options

    def lower(self) -> tuple[Schedule, ...]:
        return lower(self.wiring, self.placement, self.microbatches, **self.options)


@st.composite
def cases(draw: st.DrawFn) -> LoweringCase:
    """Any credit table, stages, micro-batches, order, costs and replicas, with any parameters that
    layers of one stage share.
    """
    table = draw(tables())
    modules = len(table.sizes)
    cuts = draw(st.sets(st.integers(1, modules - 1))) if modules > 1 else set()
    context = lp.ContextSupply(
        draw(st.booleans()), draw(st.integers(0, 3)), encoder=lambda *shapes: nn.Identity()
    )
    rule = lp.Rule(lambda partition: table, context=context)
    partition = partition_for(table, draw(ties_on_ranks(table, cuts)))
    wiring = wire(rule, partition, weight_gradients=draw(st.sampled_from(WEIGHT_GRADIENTS)))
    options: Options = {
        "order": draw(st.sampled_from(ORDERS)),
        "replicas": draw(st.sampled_from([1, 2])),
        "cost": draw(costs()),
    }
    return LoweringCase(
        wiring, Placement.at(wiring, sorted(cuts)), draw(st.integers(1, 5)), options
    )


@st.composite
def costs(draw: st.DrawFn) -> ActionCost | None:
    """The default costs, or any."""
    values = draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0, 30.0]), min_size=12, max_size=12))
    if draw(st.booleans()):
        return None
    return lambda action: values[(action.segment + 5 * len(action.op)) % 12]


def find_all_dependencies(case: LoweringCase) -> dict[Action, set[Action]]:
    """Those of the schedule, and those of contexts and sums over replicas."""
    wiring = case.wiring
    waits = find_dependencies(wiring, case.microbatches, case.placement.stages)
    for action, before in waits.items():
        segment = wiring.segments[action.segment]
        if action.op is Op.F and segment.starts_module:
            for source in wiring.sources[segment.module]:
                if source.module > 0:
                    start = wiring.segments_of(source.module)[0]
                    before.add(action._replace(segment=start))
    if case.options["replicas"] > 1:
        for reduce_op, step_op in REDUCES.items():
            for step in [action for action in waits if action.op is step_op]:
                reduce = Action(reduce_op, step.segment)
                waits[reduce], waits[step] = waits[step], {reduce}
    return waits


@settings(max_examples=150, deadline=None)
@given(cases())
def test_nobody_waits_for_ever_and_nothing_comes_too_early(case: LoweringCase) -> None:
    rank_schedules = case.lower()
    allowed = find_max_in_flight(rank_schedules)
    ParallelRun(rank_schedules, find_all_dependencies(case), allowed).run()
    # Predictions go through the same channels.
    assert find_max_in_flight(tuple(map(select_forwards, rank_schedules))) <= allowed


FORWARD_OPS = (Op.F, Op.SEND_F, Op.RECV_F, Op.SEND_C, Op.RECV_C)


def select_forwards(rank_schedule: Schedule) -> Schedule:
    """The actions of a rank's forward pass, each once."""
    forwards = [a for a in rank_schedule if a.op in FORWARD_OPS and not a.deferred]
    return Schedule(dict.fromkeys(forwards))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_each_rank_runs_its_own_actions_once(case: LoweringCase) -> None:
    whole = Schedule.compile(case.wiring, case.microbatches)
    messages = (*SENDS, *RECEIVES, *REDUCES)
    for stage, rank_schedule in zip(case.placement.stages, case.lower(), strict=True):
        computed = [a._replace(deferred=False) for a in rank_schedule if a.op not in messages]
        assert Counter(computed) == Counter(action for action in whole if action.segment in stage)
        segments = {action.segment for action in rank_schedule if action.op not in RECEIVES}
        assert segments <= set(stage)
        assert Schedule.parse(str(rank_schedule)) == rank_schedule
        reduced = Counter(REDUCES[action.op] for action in rank_schedule if action.op in REDUCES)
        stepped = Counter(action.op for action in computed if action.op in REDUCES.values())
        assert reduced == (stepped if case.options["replicas"] > 1 else Counter())


class OrderCheck:
    """Checks the order of a rank's actions over several steps."""

    def __init__(self, case: LoweringCase) -> None:
        self._case = case
        self._last: dict[tuple[Op, int, int | None], tuple[int, int]] = {}
        # By segment, step and micro-batch.
        self._backwards: Counter[tuple[int, int, int]] = Counter()
        self._steps: Counter[int] = Counter()

    def check(self, step: int, action: Action) -> None:
        op, s, _, m = action[:4]
        if op in (Op.F, Op.L, *BACKWARDS):
            self._check_microbatches_in_order(step, action)
        if op is Op.F and any(flow.train for flow in self._case.wiring.flows[s]):
            assert self._stepped(s) == {step}, "a forward before the step of the batch before"
        if op in BACKWARDS:
            self._check_backward(s, step, m)
        if op is Op.S:
            self._check_step(s, step)

    def _check_microbatches_in_order(self, step: int, action: Action) -> None:
        op, s, flow, m = action[:4]
        assert self._last.get((op, s, flow), (-1, -1)) < (step, m), f"{action} comes too late"
        self._last[op, s, flow] = step, m

    def _check_backward(self, s: int, step: int, m: int) -> None:
        self._backwards[s, step, m] += 1
        assert self._stepped(s) == {step}, "a backward through weights that have moved"

    def _check_step(self, s: int, step: int) -> None:
        wiring = self._case.wiring
        for user, flows in enumerate(wiring.flows):
            for m in range(self._case.microbatches) if s in wiring.steps_of(user) else ():
                onward = sum(flow.onward is not None for flow in flows)
                expected = onward + 1 if user in wiring.weights_once else len(flows)
                assert self._backwards[user, step, m] == expected
        self._steps[s] += 1

    def _stepped(self, s: int) -> set[int]:
        """How often the parameters have been stepped that a segment trains."""
        return {self._steps[step] for step in self._case.wiring.steps_of(s)}


@settings(max_examples=150, deadline=None)
@given(cases())
def test_sums_are_made_in_order_and_steps_in_time(case: LoweringCase) -> None:
    """Forwards, losses, and backwards of each flow of a segment come by micro-batch.

    A step comes after all backwards of its batch and before the next forward.
    """
    for rank_schedule in case.lower():
        order = OrderCheck(case)
        for step, action in unroll(rank_schedule, 3):
            order.check(step, action)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("microbatches", [1, 2, 5, 8])
@pytest.mark.parametrize("order", ORDERS)
def test_microbatches_in_flight(ranks: int, microbatches: int, order: str) -> None:
    """End-to-end: rank i of n has up to n - i of them at once in 1F1B, all in GPipe."""
    wiring = wire_mlp(lp.EndToEndCredit(), 12, 12)
    placement = balance(wiring, ranks)
    rank_schedules = lower(wiring, placement, microbatches, order=order)
    for i, (stage, rank_schedule) in enumerate(zip(placement.stages, rank_schedules, strict=True)):
        alive = [0]
        for _, action in unroll(rank_schedule, 3):
            if action.segment == stage[0] and action.op in (Op.F, Op.B):
                alive.append(alive[-1] + (1 if action.op is Op.F else -1))
        assert max(alive) == (microbatches if order == "gpipe" else min(ranks - i, microbatches))
        assert alive[-1] == 0


# --- what is found out before the first step --------------------------------------------------


def parse_all(*texts: str) -> tuple[Schedule, ...]:
    return tuple(map(Schedule.parse, texts))


def test_crossed_waiting_is_found() -> None:
    with pytest.raises(RuntimeError, match=r"rank 0 at 1RECV_B<1, rank 1 at 0RECV_F<0"):
        find_max_in_flight(parse_all("0F 1RECV_B<1 0B 0SEND_F>1", "0RECV_F<0 1F 1L 1B 1SEND_B>0"))


def test_a_swapped_order_is_found() -> None:
    words = r"would take 0RECV_F1<0 of step 0 for 0RECV_F<0 of step 0"
    with pytest.raises(RuntimeError, match=words):
        find_max_in_flight(parse_all("0F 0F1 0SEND_F1>1 0SEND_F>1", "0RECV_F<0 1F 0RECV_F1<0 1F1"))


def test_a_gradient_of_another_batch_is_found() -> None:
    words = "would take 1RECV_B<1 of step 0 for 1RECV_B<1 of step 1"
    with pytest.raises(RuntimeError, match=words):
        find_max_in_flight(parse_all("0F 0SEND_F>1 1RECV_B<1", "0RECV_F<0 1F 1SEND_B>0 1SEND_B>0"))


def test_how_many_messages_may_be_in_flight() -> None:
    assert find_max_in_flight(parse_all("0F 0SEND_F>1", "0RECV_F<0 1F")) == 2
    three = parse_all(
        "0F 0SEND_F>1 0SEND_F1>1 0SEND_F2>1 0SEND_C>1 ",
        "0RECV_C<0 0RECV_F<0 0RECV_F1<0 0RECV_F2<0 1F",
    )
    assert find_max_in_flight(three) == 4
