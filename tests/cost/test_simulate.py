"""Simulated pipelines: expected times written by hand, and what the literature knows of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import localprop as lp
from localprop.cost.simulate import Event, Timeline, Wait, simulate
from localprop.cost.timing import AllReduceCost, LinkModel
from localprop.errors import BadInput
from localprop.schedule.lowering import find_max_in_flight, lower
from localprop.schedule.placement import Placement
from localprop.schedule.schedule import BACKWARDS, Action, ActionCost, Op, Schedule, unroll
from localprop.schedule.wiring import Wiring
from tests.helpers.timelines import make_cost, make_wiring


def parse(*texts: str) -> tuple[Schedule, ...]:
    return tuple(Schedule.parse(text) for text in texts)


def spans(timeline: Timeline, rank: int) -> list[tuple[str, float, float]]:
    return [
        (str(event.action), event.start_s, event.end_s)
        for event in timeline.events
        if event.rank == rank
    ]


def waits(timeline: Timeline) -> list[tuple[int, str, float, float, int]]:
    return [
        (wait.rank, str(wait.action), wait.start_s, wait.end_s, wait.peer)
        for wait in timeline.waits
    ]


# --- by hand -------------------------------------------------------------------------------------

TWO = parse("0F 0SEND_F>1 1RECV_B<1 0B 0S", "0RECV_F<0 1F 1L 1B 1SEND_B>0 1S")


def test_two_ranks_without_micro_batches() -> None:
    timeline = simulate(TWO, make_cost(), steps=1)
    assert spans(timeline, 0) == [("0F", 0, 1), ("0B", 4, 6)]
    assert spans(timeline, 1) == [("1F", 1, 2), ("1B", 2, 4)]
    assert waits(timeline) == [(0, "1RECV_B<1", 1, 4, 1), (1, "0RECV_F<0", 0, 1, 0)]
    assert (timeline.span_s, timeline.seconds_per_step) == (6, 6)
    assert timeline.idle_shares == (0.5, 0.5)


def test_messages_take_their_time() -> None:
    # 10 bytes take 1 s on the link, and arrive half a second later.
    link = LinkModel(bytes_per_second=10, latency_s=0.5)
    timeline = simulate(TWO, make_cost(), lambda action: 10, link, steps=1)
    assert spans(timeline, 1) == [("1F", 2.5, 3.5), ("1B", 3.5, 5.5)]
    assert spans(timeline, 0) == [("0F", 0, 1), ("0B", 7, 9)]
    assert timeline.sent_bytes == {(0, 1): 10, (1, 0): 10}


def test_messages_on_one_link_follow_each_other() -> None:
    ranks = parse("0F 0SEND_F>1 0F1 0SEND_F1>1", "0RECV_F<0 1F 0RECV_F1<0 1F1")
    link = LinkModel(bytes_per_second=1)
    timeline = simulate(ranks, make_cost(), lambda action: 3, link, steps=1)
    # The sender does not wait for its messages. The second one leaves at 4, not at 2.
    assert spans(timeline, 0) == [("0F", 0, 1), ("0F1", 1, 2)]
    assert spans(timeline, 1) == [("1F", 4, 5), ("1F1", 7, 8)]


def test_messages_in_flight_are_limited() -> None:
    ranks = parse("0F 0SEND_F>1", "0RECV_F<0 1F")

    def cost(action: Action) -> float:
        return 5 if action.segment else 1

    timeline = simulate(ranks, cost, steps=4, max_in_flight=1)
    # Batch 0 is received at 1, when it arrives. Batch 1 waits from 2 until 6, when the second rank
    # has time for it.
    assert [start for _, start, _ in spans(timeline, 0)] == [0, 1, 2, 6]
    assert [start for _, start, _ in spans(timeline, 1)] == [1, 6, 11, 16]
    unlimited = simulate(ranks, cost, steps=4, max_in_flight=9)
    assert unlimited.idle_shares == timeline.idle_shares == (0.8, 0)


def test_deferred_actions_belong_to_the_batch_before() -> None:
    rank_schedule = Schedule.parse("1RECV_B<1' 0B' 0S' 0F 0SEND_F>1")
    assert [(step, str(action)) for step, action in unroll(rank_schedule, 2)] == [
        (0, "0F"), (0, "0SEND_F>1"),
        (0, "1RECV_B<1'"), (0, "0B'"), (0, "0S'"), (1, "0F"), (1, "0SEND_F>1"),
        (1, "1RECV_B<1'"), (1, "0B'"), (1, "0S'"),
    ]  # fmt: skip
    timeline = simulate((rank_schedule, TWO[1]), make_cost(), steps=6)
    assert timeline.seconds_per_step == 6
    steps = [event.step for event in timeline.events if event.rank == 0]
    assert steps == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_step_waits_for_the_sum_over_replicas() -> None:
    rank_schedule = Schedule.parse("0F 0L 0B 0REDUCE_S 1F 1L 1B 1REDUCE_S 0S 1S")
    link = LinkModel(bytes_per_second=100, latency_s=1)
    # 6 rounds of 250 bytes
    assert link.ring_all_reduce(1000, replicas=4) == AllReduceCost(sent_bytes=1500, seconds=21)
    assert link.ring_all_reduce(1000, replicas=1) == AllReduceCost(0, 0)
    timeline = simulate(
        (rank_schedule,), make_cost(step=1), lambda action: 1000, link, steps=1, replicas=4
    )
    # The sums last from 3 to 24, and then from 24 to 45. The steps take a second each.
    assert spans(timeline, 0)[-2:] == [("0S", 24, 25), ("1S", 45, 46)]
    assert waits(timeline) == [(0, "0S", 6, 24, 0), (0, "1S", 25, 45, 0)]
    assert timeline.reduced_bytes == (3000,)
    assert timeline.wire_bytes == 3000


def test_ranks_that_wait_for_each_other_are_found() -> None:
    ranks = parse("1RECV_B<1 0F 0SEND_F>1", "0RECV_F<0 1SEND_B>0")
    with pytest.raises(RuntimeError, match=r"rank 0 at 1RECV_B<1, rank 1 at 0RECV_F<0"):
        simulate(ranks, make_cost())


def test_no_steps() -> None:
    with pytest.raises(BadInput, match="steps=0"):
        simulate(TWO, make_cost(), steps=0)


# --- known results -------------------------------------------------------------------------------


def lower_evenly(
    wiring: Wiring, cost: ActionCost, microbatches: int, order: str = "1f1b"
) -> tuple[Schedule, ...]:
    """Lower a wiring to ranks with one module each."""
    placement = Placement.at(wiring, range(1, len(wiring.table.sizes)))
    return lower(wiring, placement, microbatches, cost=cost, order=order)


def cost_per_layer(
    wiring: Wiring, forward: float = 1, backward: float = 2, loss: float = 1
) -> ActionCost:
    per_layer = make_cost(forward, backward)

    def cost(action: Action) -> float:
        if action.op is Op.L:
            return loss
        return per_layer(action) * len(wiring.segments[action.segment].layers)

    return cost


def cost_per_module(wiring: Wiring, seconds: Sequence[float]) -> ActionCost:
    unit = make_cost(loss=1)

    def cost(action: Action) -> float:
        return seconds[wiring.segments[action.segment].module] * unit(action)

    return cost


@pytest.mark.parametrize(("p", "m"), [*itertools.product((2, 4, 8), (1, 2, 4, 8, 16))])
@pytest.mark.parametrize("order", ["1f1b", "gpipe"])
def test_the_bubble_of_a_pipeline(p: int, m: int, order: str) -> None:
    ranks = lower_evenly(make_wiring(lp.end_to_end(), p), make_cost(), m, order=order)
    timeline = simulate(ranks, make_cost(), max_in_flight=find_max_in_flight(ranks))
    assert timeline.seconds_per_step == 3 * (m + p - 1)
    assert timeline.idle_share == pytest.approx((p - 1) / (m + p - 1))


@pytest.mark.parametrize(("p", "m"), [(2, 2), (2, 8), (4, 4), (4, 8), (8, 8), (8, 16)])
def test_the_bubble_of_zero_bubble(p: int, m: int) -> None:
    """ZB-H1 of the paper: (p - 1) (F + B - W), with F, B and W of a second each."""
    ranks = lower_evenly(make_wiring(lp.end_to_end(), p), make_cost(), m)
    timeline = simulate(ranks, make_cost(), weight_share=0.5)
    assert timeline.seconds_per_step == 3 * m + (p - 1)


def test_postponed_halves_run_before_their_step_and_few_are_pending() -> None:
    p, m = 4, 8
    cost = make_cost(step=1)
    ranks = lower_evenly(make_wiring(lp.end_to_end(), p), cost, m)
    timeline = simulate(ranks, cost, weight_share=0.5)
    for rank in range(p):
        events = [event for event in timeline.events if event.rank == rank]
        halves = [event for event in events if event.action.op is Op.B]
        assert sum(event.end_s - event.start_s for event in halves) == 2 * m * timeline.steps
        assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(events))
        assert count_most_pending(events) <= p
        for event in events:
            if event.action.op is Op.S:
                done = [
                    half
                    for half in halves
                    if half.weight_gradient
                    and half.step == event.step
                    and half.end_s <= event.start_s
                ]
                assert len(done) == m


def count_most_pending(events: Sequence[Event]) -> int:
    """Count the most forwards at once whose weights have no gradient yet."""
    pending, most = 0, 0
    for event in events:
        pending += (event.action.op is Op.F) - event.weight_gradient
        most = max(most, pending)
    return most


@pytest.mark.parametrize("m", [1, 4])
def test_modules_that_need_no_gradients_never_wait(m: int) -> None:
    wiring = make_wiring(lp.greedy(), modules=4, layers=3)
    cost = cost_per_layer(wiring)
    timeline = simulate(lower_evenly(wiring, cost, m), cost)
    assert timeline.idle_shares == (0, 0, 0, 0)
    assert timeline.seconds_per_step == m * (3 + 6 + 1)


@pytest.mark.parametrize(
    ("rule", "hops"),
    [(lp.backlink(), 1), (lp.interlocking(wise=2), 1), (lp.interlocking(wise=3), 2)],
)
def test_short_reach_waits_for_a_few_hops_however_long_the_pipeline(
    rule: lp.Rule, hops: int
) -> None:
    periods = []
    for modules in (4, 8, 16):
        wiring = make_wiring(rule, modules, layers=2)
        cost = cost_per_layer(wiring)
        timeline = simulate(lower_evenly(wiring, cost, 1), cost)
        busy = (1 - min(timeline.idle_shares)) * timeline.seconds_per_step
        hop = 2 + 1 + 2 * 2  # a module's forward, loss and backward
        assert timeline.seconds_per_step <= busy + hops * hop
        periods.append(timeline.seconds_per_step)
    assert periods[1] == periods[2]
    wiring = make_wiring(lp.end_to_end(), 16, layers=2)
    cost = cost_per_layer(wiring)
    end_to_end = simulate(lower_evenly(wiring, cost, 1), cost)
    assert periods[2] < end_to_end.seconds_per_step / 3


def test_one_batch_at_a_time() -> None:
    """Without streaming, end-to-end goes there and back, and short reach only one hop back."""
    times = {}
    for rule in (lp.end_to_end(), lp.greedy(), lp.backlink()):
        wiring = make_wiring(rule, modules=4, layers=3)
        cost = cost_per_layer(wiring)
        ranks = lower_evenly(wiring, cost, 1)
        times[rule.reference] = simulate(ranks, cost, steps=1).span_s
    end_to_end, greedy, linked = times.values()
    assert end_to_end == 12 + 1 + 24
    assert greedy == 12 + 1 + 6
    # The gradient crosses to the last layer of the rank before.
    assert linked == 12 + 1 + 6 + 2


WIRINGS = {
    rule.reference: make_wiring(rule, 4) for rule in (lp.greedy(), lp.backlink(), lp.end_to_end())
}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    st.integers(1, 4),
    st.floats(0, 3),
    st.floats(0, 1),
)
def test_properties_of_timelines(
    seconds: list[float], m: int, nbytes: float, weight_share: float
) -> None:
    for wiring in WIRINGS.values():
        cost = cost_per_module(wiring, seconds)
        ranks = lower_evenly(wiring, cost, m)
        timeline = simulate(
            ranks,
            cost,
            lambda action: nbytes,
            LinkModel(1.0, 0.1),
            max_in_flight=find_max_in_flight(ranks),
            weight_share=weight_share,
        )
        busy = [sum(cost(action) for action in rank_schedule) for rank_schedule in ranks]
        assert timeline.seconds_per_step >= max(busy) * (1 - 1e-9)
        assert all(0 <= share < 1 for share in timeline.idle_shares)
        for rank in range(4):
            events_and_waits: list[Event | Wait] = [*timeline.events, *timeline.waits]
            intervals = sorted((x.start_s, x.end_s) for x in events_and_waits if x.rank == rank)
            assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(intervals))
            spent = sum(
                event.end_s - event.start_s for event in timeline.events if event.rank == rank
            )
            assert spent == pytest.approx(busy[rank] * timeline.steps)


def test_free_links_and_no_gradients_run_at_the_speed_of_the_slowest_rank() -> None:
    wiring = WIRINGS[lp.greedy().reference]
    cost = cost_per_module(wiring, [1.0, 4.0, 2.0, 3.0])
    timeline = simulate(lower_evenly(wiring, cost, 2), cost)
    assert timeline.seconds_per_step == pytest.approx(2 * 4 * 4)
    assert timeline.idle_shares == pytest.approx((0.75, 0, 0.5, 0.25))


def test_weights_with_an_action_of_their_own_are_postponed_whole() -> None:
    """Nothing of the backwards of their segment is; of other segments half of them is."""
    schedule = Schedule.parse("0F 1F 1B.0 0B 1W 1S 0S")

    def cost(action: Action) -> float:
        return float(action.op in (Op.F, *BACKWARDS))

    timeline = simulate([schedule], cost, steps=1, weight_share=0.5)
    found = [(str(e.action), e.end_s - e.start_s, e.weight_gradient) for e in timeline.events]
    assert found == [
        ("0F", 1.0, False),
        ("1F", 1.0, False),
        ("1B.0", 1.0, False),
        ("0B", 0.5, False),
        ("0B", 0.5, True),
        ("1W", 1.0, True),
    ]
