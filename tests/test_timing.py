"""Seconds: measured per action, and pipelines on paper, with the expected times written out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import localprop as lp
from localprop.errors import BadInput
from localprop.ranks.lowering import in_flight, lower
from localprop.ranks.placement import Placement
from localprop.rule.losses import Batch
from localprop.step.schedule import Action, Op, Schedule, unrolled
from localprop.step.timeline import Timeline, simulate
from localprop.step.timing import Cost, Kind, Ring, Seconds, Wire, measure, message_bytes
from localprop.step.wiring import Wiring


def parse(*texts: str) -> tuple[Schedule, ...]:
    return tuple(Schedule.parse(text) for text in texts)


def cost(forward: float = 1, backward: float = 2, loss: float = 0, step: float = 0) -> Cost:
    of = {Op.F: forward, Op.B: backward, Op.L: loss, Op.S: step}
    return lambda action: of.get(action.op, 0)


def spans(timeline: Timeline, rank: int) -> list[tuple[str, float, float]]:
    return [(str(event.action), event.start_s, event.end_s) for event in timeline.events if event.rank == rank]


def waits(timeline: Timeline) -> list[tuple[int, str, float, float, int]]:
    return [(wait.rank, str(wait.action), wait.start_s, wait.end_s, wait.peer) for wait in timeline.waits]


# --- by hand --------------------------------------------------------------------------------------------------------

TWO = parse("0F 0SEND_F>1 1RECV_B0<1 0B0 0S", "0RECV_F<0 1F 1L 1B0 1SEND_B0>0 1S")


def test_two_ranks_without_micro_batches() -> None:
    timeline = simulate(TWO, cost(), steps=1)
    assert spans(timeline, 0) == [("0F", 0, 1), ("0B0", 4, 6)]
    assert spans(timeline, 1) == [("1F", 1, 2), ("1B0", 2, 4)]
    assert waits(timeline) == [(0, "1RECV_B0<1", 1, 4, 1), (1, "0RECV_F<0", 0, 1, 0)]
    assert (timeline.span_s, timeline.seconds_per_step) == (6, 6)
    assert timeline.idle_shares == (0.5, 0.5)


def test_messages_take_their_time() -> None:
    wire = Wire(bytes_per_second=10, latency_s=0.5)  # 10 bytes: 1 s on the link, and half a second to arrive
    timeline = simulate(TWO, cost(), lambda action: 10, wire, steps=1)
    assert spans(timeline, 1) == [("1F", 2.5, 3.5), ("1B0", 3.5, 5.5)]
    assert spans(timeline, 0) == [("0F", 0, 1), ("0B0", 7, 9)]
    assert timeline.sent_bytes == {(0, 1): 10, (1, 0): 10}


def test_messages_on_one_link_follow_each_other() -> None:
    ranks = parse("0F 0SEND_F>1 0F/1 0SEND_F>1/1", "0RECV_F<0 1F 0RECV_F<0/1 1F/1")
    timeline = simulate(ranks, cost(), lambda action: 3, Wire(bytes_per_second=1), steps=1)
    assert spans(timeline, 0) == [("0F", 0, 1), ("0F/1", 1, 2)]  # it does not wait for its messages
    assert spans(timeline, 1) == [("1F", 4, 5), ("1F/1", 7, 8)]  # the second leaves at 4, not at 2


def test_at_most_so_many_messages_are_in_flight() -> None:
    ranks = parse("0F 0SEND_F>1", "0RECV_F<0 1F")
    slow_end: Cost = lambda action: 5 if action.segment else 1  # noqa: E731
    timeline = simulate(ranks, slow_end, steps=4, in_flight=1)
    # batch 0 is taken at 1, when it arrives; batch 1 waits from 2 until 6, when the second rank has time for it
    assert [start for _, start, _ in spans(timeline, 0)] == [0, 1, 2, 6]
    assert [start for _, start, _ in spans(timeline, 1)] == [1, 6, 11, 16]
    assert simulate(ranks, slow_end, steps=4, in_flight=9).idle_shares == timeline.idle_shares == (0.8, 0)


def test_late_actions_belong_to_the_batch_before() -> None:
    programme = Schedule.parse("1RECV_B0<1' 0B0' 0S' 0F 0SEND_F>1")
    assert [(step, str(action)) for step, action in unrolled(programme, 2)] == [
        (0, "0F"), (0, "0SEND_F>1"),
        (0, "1RECV_B0<1'"), (0, "0B0'"), (0, "0S'"), (1, "0F"), (1, "0SEND_F>1"),
        (1, "1RECV_B0<1'"), (1, "0B0'"), (1, "0S'"),
    ]  # fmt: skip
    timeline = simulate((programme, TWO[1]), cost(), steps=6)
    assert timeline.seconds_per_step == 6
    assert [event.step for event in timeline.events if event.rank == 0] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_step_waits_for_the_sum_over_replicas() -> None:
    programme = Schedule.parse("0F 0L 0B0 0REDUCE_S 1F 1L 1B0 1REDUCE_S 0S 1S")
    wire = Wire(bytes_per_second=100, latency_s=1)
    assert wire.ring(1000, replicas=4) == Ring(sent_bytes=1500, seconds=21)  # 6 rounds of 250 bytes
    assert wire.ring(1000, replicas=1) == Ring(0, 0)
    timeline = simulate((programme,), cost(step=1), lambda action: 1000, wire, steps=1, replicas=4)
    # sums: from 3 to 24, and then the other one from 24 to 45; the steps take a second each
    assert spans(timeline, 0)[-2:] == [("0S", 24, 25), ("1S", 45, 46)]
    assert waits(timeline) == [(0, "0S", 6, 24, 0), (0, "1S", 25, 45, 0)]
    assert timeline.reduced_bytes == (3000,)
    assert timeline.wire_bytes == 3000


def test_ranks_that_wait_for_each_other_are_found() -> None:
    with pytest.raises(RuntimeError, match=r"rank 0 at 1RECV_B0<1, rank 1 at 0RECV_F<0"):
        simulate(parse("1RECV_B0<1 0F 0SEND_F>1", "0RECV_F<0 1SEND_B0>0"), cost())


def test_no_steps() -> None:
    with pytest.raises(BadInput, match="steps=0"):
        simulate(TWO, cost(), steps=0)


# --- what is known of pipelines -------------------------------------------------------------------------------------


def wired(rule: lp.Rule, modules: int, layers: int = 1) -> Wiring:
    """Equal modules of equal layers."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(modules * layers)))
    batch = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    return lp.Learner(model, rule, modules=modules, optimizer=sgd, sample=batch).wiring


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def pipeline(wiring: Wiring, seconds: Cost, microbatches: int, **options: str) -> tuple[Schedule, ...]:
    placement = Placement.at(wiring, range(1, len(wiring.table.sizes)))
    return lower(wiring, placement, microbatches, cost=seconds, **options)  # type: ignore[arg-type]


def per_layer(wiring: Wiring, forward: float = 1, backward: float = 2, loss: float = 1) -> Cost:
    of = cost(forward, backward)
    return lambda a: loss if a.op is Op.L else of(a) * len(wiring.segments[a.segment].layers)


@pytest.mark.parametrize(("p", "m"), [*itertools.product((2, 4, 8), (1, 2, 4, 8, 16))])
@pytest.mark.parametrize("order", ["1f1b", "gpipe"])
def test_the_bubble_of_a_pipeline(p: int, m: int, order: str) -> None:
    ranks = pipeline(wired(lp.end_to_end(), p), cost(), m, order=order)
    timeline = simulate(ranks, cost(), in_flight=in_flight(ranks))
    assert timeline.seconds_per_step == 3 * (m + p - 1)
    assert timeline.idle_share == pytest.approx((p - 1) / (m + p - 1))


@pytest.mark.parametrize(("p", "m"), [(2, 2), (2, 8), (4, 4), (4, 8), (8, 8), (8, 16)])
def test_the_bubble_of_zero_bubble(p: int, m: int) -> None:
    """ZB-H1 of the paper: (p - 1) (F + B - W), with forward, error and weights of a second each."""
    timeline = simulate(pipeline(wired(lp.end_to_end(), p), cost(), m), cost(), weight_share=0.5)
    assert timeline.seconds_per_step == 3 * m + (p - 1)


def test_what_is_put_off_runs_before_its_step_and_is_not_held_for_long() -> None:
    p, m = 4, 8
    timeline = simulate(pipeline(wired(lp.end_to_end(), p), cost(step=1), m), cost(step=1), weight_share=0.5)
    for rank in range(p):
        own = [event for event in timeline.events if event.rank == rank]
        halves = [event for event in own if event.action.op is Op.B]
        assert sum(event.end_s - event.start_s for event in halves) == 2 * m * timeline.steps
        assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(own))
        open_, most = 0, 0
        for event in own:  # forwards whose weights have no gradient yet
            open_ += (event.action.op is Op.F) - event.put_off
            most = max(most, open_)
            if event.action.op is Op.S:
                done = [e for e in halves if e.put_off and e.step == event.step and e.end_s <= event.start_s]
                assert len(done) == m
        assert most <= p


@pytest.mark.parametrize("m", [1, 4])
def test_what_needs_no_errors_never_waits(m: int) -> None:
    wiring = wired(lp.greedy(), modules=4, layers=3)
    timeline = simulate(pipeline(wiring, per_layer(wiring), m), per_layer(wiring))
    assert timeline.idle_shares == (0, 0, 0, 0)
    assert timeline.seconds_per_step == m * (3 + 6 + 1)


@pytest.mark.parametrize(
    ("rule", "hops"), [(lp.backlink(), 1), (lp.interlocking(wise=2), 1), (lp.interlocking(wise=3), 2)]
)
def test_short_reach_waits_for_a_few_hops_however_long_the_pipe(rule: lp.Rule, hops: int) -> None:
    periods = []
    for modules in (4, 8, 16):
        wiring = wired(rule, modules, layers=2)
        seconds = per_layer(wiring)
        timeline = simulate(pipeline(wiring, seconds, 1), seconds)
        busy = (1 - min(timeline.idle_shares)) * timeline.seconds_per_step
        hop = 2 + 1 + 2 * 2  # a module's forward, loss and backward
        assert timeline.seconds_per_step <= busy + hops * hop
        periods.append(timeline.seconds_per_step)
    assert periods[1] == periods[2]
    wiring = wired(lp.end_to_end(), 16, layers=2)
    assert periods[2] < simulate(pipeline(wiring, per_layer(wiring), 1), per_layer(wiring)).seconds_per_step / 3


def test_one_batch_at_a_time() -> None:
    """Without streaming: end-to-end goes all the way there and back, short reach goes there and one hop back."""
    times = {}
    for rule in (lp.end_to_end(), lp.greedy(), lp.backlink()):
        wiring = wired(rule, modules=4, layers=3)
        times[rule.reference] = simulate(pipeline(wiring, per_layer(wiring), 1), per_layer(wiring), steps=1).span_s
    end_to_end, greedy, linked = times.values()
    assert end_to_end == 12 + 1 + 24
    assert greedy == 12 + 1 + 6
    assert linked == 12 + 1 + 6 + 2  # the error crosses to the tail of the rank before, one layer


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=4, max_size=4), st.integers(1, 4), st.floats(0, 3), st.floats(0, 1))
def test_properties_of_timelines(seconds: list[float], m: int, nbytes: float, weight_share: float) -> None:
    for rule in (lp.greedy(), lp.backlink(), lp.end_to_end()):
        wiring = WIRINGS[rule.reference]
        own: Cost = lambda a, wiring=wiring: seconds[wiring.segments[a.segment].module] * cost(loss=1)(a)  # type: ignore[misc] # noqa: E731
        ranks = pipeline(wiring, own, m)
        timeline = simulate(
            ranks, own, lambda a: nbytes, Wire(1.0, 0.1), in_flight=in_flight(ranks), weight_share=weight_share
        )
        busy = [sum(own(action) for action in programme) for programme in ranks]
        assert timeline.seconds_per_step >= max(busy) * (1 - 1e-9)
        assert all(0 <= share < 1 for share in timeline.idle_shares)
        for rank in range(4):
            whole = sorted((x.start_s, x.end_s) for x in (*timeline.events, *timeline.waits) if x.rank == rank)
            assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(whole))
            spent = sum(event.end_s - event.start_s for event in timeline.events if event.rank == rank)
            assert spent == pytest.approx(busy[rank] * timeline.steps)


WIRINGS = {rule.reference: wired(rule, 4) for rule in (lp.greedy(), lp.backlink(), lp.end_to_end())}


def test_a_free_wire_and_no_errors_run_at_the_slowest_ranks_speed() -> None:
    wiring, seconds = WIRINGS[lp.greedy().reference], [1.0, 4.0, 2.0, 3.0]
    own: Cost = lambda a: seconds[a.segment] * cost(loss=1)(a)  # noqa: E731
    timeline = simulate(pipeline(wiring, own, 2), own)
    assert timeline.seconds_per_step == pytest.approx(2 * 4 * 4)
    assert timeline.idle_shares == pytest.approx((0.75, 0, 0.5, 0.25))


# --- measured seconds -----------------------------------------------------------------------------------------------


def learner_of(rule: lp.Rule, modules: int, samples: int = 4, **options: bool) -> tuple[lp.Learner, Batch]:
    torch.manual_seed(0)
    batch = Batch(torch.randn(samples, 3, 8, 8), torch.randint(10, (samples,)))
    model = lp.models.resnet8()
    return lp.Learner(model, rule, modules=modules, optimizer=sgd, sample=batch, **options), batch  # type: ignore[arg-type]


def state(learner: lp.Learner) -> list[Tensor]:
    modules = (learner.model, learner.heads, learner.encoders)
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


@pytest.mark.parametrize(
    "rule", [lp.end_to_end(), lp.backlink(), lp.contsup()], ids=["end_to_end", "backlink", "contsup"]
)
def test_measuring_leaves_everything_as_it_was(rule: lp.Rule) -> None:
    learner, batch = learner_of(rule, 2)
    other, _ = learner_of(rule, 2)
    before, random = state(learner), torch.get_rng_state()
    measure(learner.engine, batch, rounds=1)
    assert all(torch.equal(a, b) for a, b in zip(before, state(learner), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert not any(optimizer.state for optimizer in learner.optimizers)
    assert all(parameter.grad is None for parameter in learner.parameters())
    for each in (learner, other):
        each.step(batch)
        each.step(batch)
    assert all(torch.equal(a, b) for a, b in zip(state(other), state(learner), strict=True))


def test_every_action_is_timed_from_its_beginning_to_the_next_ones() -> None:
    learner, batch = learner_of(lp.backlink(), 2)
    ticks = itertools.count()
    seconds = measure(learner.engine, batch, rounds=2, clock=lambda: float(next(ticks)) ** 2)
    n = len(learner.schedule)
    marks = [[float(i + r * (n + 1)) ** 2 for i in range(n + 1)] for r in range(2)]
    for i, action in enumerate(learner.schedule):
        assert seconds(action) == sum(row[i + 1] - row[i] for row in marks) / 2
    assert seconds.samples == 4


def test_micro_batches_are_timed_together() -> None:
    learner, batch = learner_of(lp.greedy(), 2, samples=8, microbatches=4)
    seconds = measure(learner.engine, batch, rounds=1, clock=itertools.count().__next__)  # type: ignore[arg-type]
    assert seconds.samples == 2
    assert {Kind.of(action) for action in learner.schedule} == set(seconds.of)
    assert sum(seconds.per_module(learner.wiring, 4)) == len(learner.schedule)


def test_real_seconds_are_positive_and_of_this_machine() -> None:
    learner, batch = learner_of(lp.greedy(), 2)
    seconds = measure(learner.engine, batch)
    assert all(0 < seconds(action) < 10 for action in learner.schedule)


def test_no_rounds() -> None:
    learner, batch = learner_of(lp.greedy(), 2)
    with pytest.raises(BadInput, match="rounds=0"):
        measure(learner.engine, batch, rounds=0)


def test_seconds_by_segment_and_module() -> None:
    wiring = wired(lp.backlink(), modules=2, layers=2)  # segments: body 0, tail 1, module 1 (2)
    assert [segment.module for segment in wiring.segments] == [0, 0, 1]
    of = {(Op.F, 0): 1.0, (Op.B, 0): 2.0, (Op.S, 0): 0.5, (Op.F, 1): 4.0, (Op.H, 1): 0.25, (Op.L, 2): 8.0}
    seconds = Seconds({Kind(op, s, 0 if op is Op.B else None): own for (op, s), own in of.items()}, samples=8)
    assert seconds.per_segment(wiring, microbatches=2) == [2 + 4 + 0.5, 8 + 0.25, 16]
    assert seconds.per_module(wiring) == [3 + 0.5 + 4 + 0.25, 8]
    half = seconds.scaled(4)
    assert half.samples == 4
    assert half.per_segment(wiring, microbatches=4) == seconds.per_segment(wiring, microbatches=2)
    assert seconds(Action(Op.SEND_F, 0, peer=1)) == 0


# --- messages -------------------------------------------------------------------------------------------------------


def test_bytes_of_messages() -> None:
    learner, _ = learner_of(lp.contsup(), 4)  # layers: 16x8x8, 16x8x8, 32x4x4, 64x2x2
    of, wiring = message_bytes(learner.wiring, samples=2), learner.wiring
    assert of(Action(Op.SEND_F, 1, peer=2)) == 2 * 16 * 8 * 8 * 4
    assert of(Action(Op.SEND_F, 2, peer=3)) == 2 * 32 * 4 * 4 * 4
    assert of(Action(Op.SEND_B, 2, 0, peer=1)) == 2 * 16 * 8 * 8 * 4
    assert of(Action(Op.SEND_C, 3, peer=3)) == 2 * 32 * 4 * 4 * 4
    stem = 3 * 16 * 9 + 2 * 16
    assert of(Action(Op.REDUCE_S, 0)) == 4 * stem
    block, encoders = 2 * 16 * 16 * 9 + 4 * 16, sum(p.numel() for p in learner.encoders["1"].parameters())
    assert of(Action(Op.REDUCE_S, 1)) == 4 * (block + encoders)
    assert of(Action(Op.REDUCE_H, 0)) == 4 * sum(p.numel() for p in wiring.heads["0"].parameters())
    assert of(Action(Op.F, 0)) == 0


def test_reduced_bytes_are_those_of_all_parameters() -> None:
    learner, _ = learner_of(lp.contsup(), 3)
    wiring = learner.wiring
    ranks = lower(wiring, Placement.at(wiring, (1, 2)), replicas=2)
    nbytes = message_bytes(wiring, samples=4)
    assert sum(nbytes(a) for rank in ranks for a in rank if a.op in (Op.REDUCE_S, Op.REDUCE_H)) == 4 * sum(
        parameter.numel() for parameter in learner.parameters()
    )
    timeline = simulate(ranks, cost(), nbytes, Wire(1e6), replicas=2)
    assert sum(timeline.reduced_bytes) == pytest.approx(4 * sum(p.numel() for p in learner.parameters()))
