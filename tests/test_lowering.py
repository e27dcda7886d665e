"""Each rank's own list of actions: as text for small cases, and what must hold of any; no process is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from test_schedule import layers, tables, wired
from torch import nn

import localprop as lp
from localprop.network.balance import balanced_cuts
from localprop.ranks.lowering import ORDERS, in_flight, lower
from localprop.ranks.placement import Placement, layer_costs
from localprop.step.schedule import RECEIVES, REDUCES, SENDS, Action, Op, Schedule, unrolled, waits_of
from localprop.step.wiring import Wiring, wire

# --- as text ------------------------------------------------------------------------------------------------------------

# Two ranks; credit, layers, modules, micro-batches, order -> what ranks 0 and 1 run.
TEXTS: dict[str, tuple[lp.Credit, int, int, int, str, str, str]] = {
    "greedy": (
        *(lp.Own(), 4, 4, 1, "1f1b"),
        "0F 0L 0H 0B0 0S 1F 1SEND_F>1 1L 1H 1B0 1S",
        "1RECV_F<0 2F 2L 2H 2B0 2S 3F 3L 3B0 3S",
    ),
    "greedy, 4 micro-batches": (
        *(lp.Own(), 2, 2, 4, "1f1b"),
        "0F 0SEND_F>1 0L 0B0 0F/1 0SEND_F>1/1 0L/1 0B0/1 0F/2 0SEND_F>1/2 0L/2 0B0/2 0F/3 0SEND_F>1/3 0L/3 0H 0B0/3 0S",
        "0RECV_F<0 1F 1L 1B0 0RECV_F<0/1 1F/1 1L/1 1B0/1 0RECV_F<0/2 1F/2 1L/2 1B0/2 0RECV_F<0/3 1F/3 1L/3 1B0/3 1S",
    ),
    "backlink": (  # modules of two layers: the tail of module 0 waits for the error, its body goes on
        *(lp.BackwardLinks(1), 4, 2, 1, "1f1b"),
        "0F 2RECV_B0<1' 1B1' 1S' 1F 1SEND_F>1 1L 1H 1B0 0B0 0S",
        "1RECV_F<0 2F 2L 2B0 2SEND_B0>0 2S",
    ),
    "backlink over whole modules": (  # both losses' errors make one flow, which waits for the farther one
        *(lp.BackwardLinks(1), 2, 2, 1, "1f1b"),
        "1RECV_B0<1' 0B0' 0S' 0F 0SEND_F>1 0L 0H",
        "0RECV_F<0 1F 1L 1B0 1SEND_B0>0 1S",
    ),
    "interlocking(2)": (
        *(lp.Interlocked(2), 4, 4, 1, "1f1b"),
        "0F 2RECV_B0<1' 1B1' 1S' 1F 1SEND_F>1 1L 1H 1B0 0B0 0S",
        "1RECV_F<0 2F 2L 2H 2B0 2SEND_B0>0 3F 3L 3B0 3S 2B1 2S",
    ),
    "interlocking(3)": (
        *(lp.Interlocked(3), 4, 4, 1, "1f1b"),
        "2RECV_B0<1' 1B0' 0B0' 0S' 0F 2RECV_B1<1' 1B1' 1S' 1F 1SEND_F>1",
        "1RECV_F<0 2F 2L 2H 2B0 2SEND_B0>0 3F 3L 3B0 3S 2B1 2SEND_B1>0 2S",
    ),
    "end_to_end": (
        *(lp.EndToEnd(), 4, 4, 1, "1f1b"),
        "2RECV_B0<1' 1B0' 1S' 0B0' 0S' 0F 1F 1SEND_F>1",
        "1RECV_F<0 2F 3F 3L 3B0 3S 2B0 2SEND_B0>0 2S",
    ),
    "end_to_end, 4 micro-batches": (  # two in flight on rank 0, one on rank 1
        *(lp.EndToEnd(), 2, 2, 4, "1f1b"),
        "1RECV_B0<1/2' 0B0/2' 1RECV_B0<1/3' 0B0/3' 0S' 0F 0SEND_F>1 0F/1 0SEND_F>1/1 1RECV_B0<1 0B0 "
        "0F/2 0SEND_F>1/2 1RECV_B0<1/1 0B0/1 0F/3 0SEND_F>1/3",
        "0RECV_F<0 1F 1L 1B0 1SEND_B0>0 0RECV_F<0/1 1F/1 1L/1 1B0/1 1SEND_B0>0/1 0RECV_F<0/2 1F/2 1L/2 1B0/2 "
        "1SEND_B0>0/2 0RECV_F<0/3 1F/3 1L/3 1B0/3 1SEND_B0>0/3 1S",
    ),
    "end_to_end, gpipe": (
        *(lp.EndToEnd(), 2, 2, 2, "gpipe"),
        "1RECV_B0<1' 0B0' 1RECV_B0<1/1' 0B0/1' 0S' 0F 0SEND_F>1 0F/1 0SEND_F>1/1",
        "0RECV_F<0 1F 1L 0RECV_F<0/1 1F/1 1B0 1SEND_B0>0 1L/1 1B0/1 1SEND_B0>0/1 1S",
    ),
}


def placed(wiring: Wiring, stages: int) -> Placement:
    return Placement.balanced(wiring, stages, layer_costs(wiring))


@pytest.mark.parametrize("name", TEXTS)
def test_programmes_as_text(name: str) -> None:
    credit, layers, modules, microbatches, order, *expected = TEXTS[name]
    wiring = wired(credit, layers, modules)
    programmes = lower(wiring, Placement.at(wiring, (modules // 2,)), microbatches, order=order)
    assert list(map(str, programmes)) == expected


def test_second_runs_and_sums_over_replicas_as_text() -> None:
    """What comes late is recomputed late; the last sum is awaited during the next batch."""
    wiring = wired(lp.BackwardLinks(1), 4, 2)
    again = frozenset(s for s, flows in enumerate(wiring.flows) if flows)
    assert str(lower(wired(lp.EndToEnd(), 2, 2), Placement((range(1), range(1, 2))), recomputed=frozenset({0}))[0]) == (
        "0F' 1RECV_B0<1' 0B0' 0S' 0F 0SEND_F>1"
    )
    assert str(lower(wiring, placed(wiring, 2), recomputed=again - {2})[0]) == (
        "0F 2RECV_B0<1' 1B1' 1S' 1F 1SEND_F>1 1L 1H 1F 1B0 0F 0B0 0S"
    )
    assert str(lower(wired(lp.Own(), 2, 2), Placement((range(2),)), replicas=2)[0]) == (
        "0S' 0F 0L 0REDUCE_H 0B0 0H 0REDUCE_S 1S' 1F 1L 1B0 1REDUCE_S"
    )


# --- what holds of any programme ----------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> tuple[Wiring, Placement, int, dict]:
    """Any credit table, stages, micro-batches, order, costs, replicas and second runs."""
    table = draw(tables())
    partition = lp.Partition(layers(sum(table.sizes)), tuple(end + 1 for end in table.ends[:-1]))
    context = lp.ContextSupply(draw(st.booleans()), draw(st.integers(0, 3)), encoder=lambda *place: nn.Identity())
    wiring = wire(lp.Rule(lambda partition: table, context=context), partition, task=lp.CrossEntropy())
    modules = len(wiring.table.sizes)
    cuts = draw(st.sets(st.integers(1, modules - 1))) if modules > 1 else set()
    costs = draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0, 30.0]), min_size=12, max_size=12))
    trained = [s for s, flows in enumerate(wiring.flows[:-1]) if flows]
    options = {
        "order": draw(st.sampled_from(ORDERS)),
        "replicas": draw(st.sampled_from([1, 2])),
        "recomputed": frozenset(draw(st.sets(st.sampled_from(trained)))) if trained else frozenset(),
        "cost": draw(st.sampled_from([None, lambda action: costs[(action.segment + 5 * len(action.op)) % 12]])),
    }
    return wiring, Placement.at(wiring, sorted(cuts)), draw(st.integers(1, 5)), options


def run_together(programmes: Sequence[Schedule], waits: dict[Action, set[Action]], allowed: int) -> None:
    """Run all ranks for three steps as the transport does: a rank begins a step when the rank before has, sends into channels
    that hold `allowed` messages, receives in their order; all that an action waits for is done or has come."""
    lists = [_with_greetings(programme) for programme in programmes]
    places, begun = [0] * len(lists), [-1] * len(lists)
    queues: dict[tuple[int, int, Op], list[tuple[int, Action]]] = {}
    done: list[set[tuple[int, Action]]] = [set() for _ in lists]
    moved = True
    while moved:
        moved = False
        for i, actions in enumerate(lists):
            while places[i] < len(actions):
                step, action = actions[places[i]]
                if action is None:
                    if i and begun[i - 1] < step:
                        break
                    begun[i] = step
                elif action.op in SENDS:
                    queue = queues.setdefault((i, action.peer, action.op), [])
                    if len(queue) == allowed:
                        break
                    queue.append((step, action._replace(op=SENDS[action.op], peer=i, late=False)))
                elif action.op in RECEIVES:
                    queue = queues.setdefault((action.peer, i, RECEIVES[action.op]), [])
                    if not queue:
                        break
                    assert queue.pop(0) == (step, action._replace(late=False)), "a message taken for another"
                    done[i].add((step, _made_by(action)))
                else:
                    plain = action._replace(late=False)
                    missing = {before for before in waits[plain] if (step, before) not in done[i]}
                    assert not missing, f"{action} before {missing}"
                    done[i].add((step, plain))
                places[i] += 1
                moved = True
    assert places == [len(actions) for actions in lists], "ranks wait for each other"
    assert not any(queues.values()), "a message that nobody receives"


def _with_greetings(programme: Schedule) -> list[tuple[int, Action | None]]:
    steps, flushed = range(3), [(2, action) for action in programme if action.late]
    steady: list[tuple[int, Action | None]] = []
    for t in steps:
        steady.append((t, None))
        steady += [(t - action.late, action) for action in programme if t or not action.late]
    return steady + flushed


def _made_by(message: Action) -> Action:
    made = Op.B if message.op is Op.RECV_B else Op.F
    return Action(made, message.segment, message.flow, message.microbatch)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_nobody_waits_for_ever_and_nothing_comes_too_early(case: tuple[Wiring, Placement, int, dict]) -> None:
    wiring, placement, microbatches, options = case
    programmes = lower(wiring, placement, microbatches, **options)
    waits = waits_of(wiring, microbatches, placement.stages)
    for action in [action for action in waits if action.op is Op.F and wiring.segments[action.segment].inlet]:
        sources = [source.module for source in wiring.sources[wiring.segments[action.segment].module]]
        waits[action] |= {action._replace(segment=wiring.segments_of(k)[0]) for k in sources if k > 0}
    for reduce, step in REDUCES.items() if options["replicas"] > 1 else ():
        for action in [action for action in waits if action.op is step]:
            waits[Action(reduce, action.segment)], waits[action] = waits[action], {Action(reduce, action.segment)}
    run_together(programmes, waits, in_flight(programmes))
    forwards = tuple(
        Schedule(
            dict.fromkeys(a for a in p if a.op in (Op.F, Op.SEND_F, Op.RECV_F, Op.SEND_C, Op.RECV_C) and not a.late)
        )
        for p in programmes
    )
    assert in_flight(forwards) <= in_flight(programmes)  # predictions go through the same channels


@settings(max_examples=150, deadline=None)
@given(cases())
def test_each_rank_runs_its_own_part_once(case: tuple[Wiring, Placement, int, dict]) -> None:
    wiring, placement, microbatches, options = case
    programmes = lower(wiring, placement, microbatches, **options)
    whole = Schedule.of(wiring, microbatches, options["recomputed"])
    messages = (*SENDS, *RECEIVES, *REDUCES)
    for stage, programme in zip(placement.stages, programmes, strict=True):
        own = [action._replace(late=False) for action in programme if action.op not in messages]
        assert Counter(own) == Counter(action for action in whole if action.segment in stage)
        assert {action.segment for action in programme if action.op not in RECEIVES} <= set(stage)
        assert Schedule.parse(str(programme)) == programme
        reduced = Counter(REDUCES[action.op] for action in programme if action.op in REDUCES)
        stepped = Counter(action.op for action in own if action.op in REDUCES.values())
        assert reduced == (stepped if options["replicas"] > 1 else Counter())


@settings(max_examples=150, deadline=None)
@given(cases())
def test_sums_are_made_in_order_and_steps_in_time(case: tuple[Wiring, Placement, int, dict]) -> None:
    """Per segment, forwards, losses, and backwards of each flow come by micro-batch; a step comes after all backwards of its
    batch and before the next forward; a second forward comes before all backwards of its micro-batch."""
    wiring, placement, microbatches, options = case
    for programme in lower(wiring, placement, microbatches, **options):
        last: dict[tuple[Op, int, int | None], tuple[int, int]] = {}
        runs, backwards, steps = Counter(), Counter(), Counter()
        for step, action in unrolled(programme, 3):
            op, s, flow, m = action[:4]
            place, at = (op, s, flow), (step, m)
            if op in (Op.L, Op.B) or (op is Op.F and not runs[s, *at]):
                assert last.get(place, (-1, -1)) < at, f"{action} comes too late"
                last[place] = at
            if op is Op.F:
                assert not backwards[s, *at] or s not in options["recomputed"], "run again after a backward"
                runs[s, *at] += 1
                if runs[s, *at] == 1 and any(flow.train for flow in wiring.flows[s]):
                    assert steps[s] == step, "a forward before the step of the batch before"
            if op is Op.B:
                assert runs[s, *at] == 1 + (s in options["recomputed"])
                backwards[s, *at] += 1
                assert steps[s] == step, "a backward through weights that have moved"
            if op is Op.S:
                assert all(backwards[s, step, m] == len(wiring.flows[s]) for m in range(microbatches))
                steps[s] += 1


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("microbatches", [1, 2, 5, 8])
def test_micro_batches_in_flight(ranks: int, microbatches: int) -> None:
    """End-to-end: rank i of n has up to n - i of them at once in 1F1B, all in GPipe."""
    wiring = wired(lp.EndToEnd(), 12, 12)
    for order in ORDERS:
        for i, programme in enumerate(lower(wiring, placed(wiring, ranks), microbatches, order=order)):
            stage = placed(wiring, ranks).stages[i]
            alive = [0]
            for _, action in unrolled(programme, 3):
                if action.segment == stage[0] and action.op in (Op.F, Op.B):
                    alive.append(alive[-1] + (1 if action.op is Op.F else -1))
            assert max(alive) == (microbatches if order == "gpipe" else min(ranks - i, microbatches))
            assert alive[-1] == 0


# --- what is found out before the first step ----------------------------------------------------------------------------


def programmes_of(*texts: str) -> tuple[Schedule, ...]:
    return tuple(map(Schedule.parse, texts))


def test_crossed_waiting_is_found() -> None:
    with pytest.raises(RuntimeError, match=r"rank 0 at 1RECV_B0<1, rank 1 at 0RECV_F<0"):
        in_flight(programmes_of("0F 1RECV_B0<1 0B0 0SEND_F>1", "0RECV_F<0 1F 1L 1B0 1SEND_B0>0"))


def test_a_swapped_order_is_found() -> None:
    with pytest.raises(RuntimeError, match=r"would take 0RECV_F<0/1 of step 0 for 0RECV_F<0 of step 0"):
        in_flight(programmes_of("0F 0F/1 0SEND_F>1/1 0SEND_F>1", "0RECV_F<0 1F 0RECV_F<0/1 1F/1"))


def test_an_error_of_another_batch_is_found() -> None:
    with pytest.raises(RuntimeError, match="would take 1RECV_B0<1 of step 0 for 1RECV_B0<1 of step 1"):
        in_flight(programmes_of("0F 0SEND_F>1 1RECV_B0<1", "0RECV_F<0 1F 1SEND_B0>0 1SEND_B0>0"))


def test_how_many_messages_may_be_under_way() -> None:
    assert in_flight(programmes_of("0F 0SEND_F>1", "0RECV_F<0 1F")) == 2
    three = "0F 0SEND_F>1 0SEND_F>1/1 0SEND_F>1/2 0SEND_C>1 ", "0RECV_C<0 0RECV_F<0 0RECV_F<0/1 0RECV_F<0/2 1F"
    assert in_flight(programmes_of(*three)) == 4


# --- placement ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(0,), (4,), (2, 2), (3, 1), (-1,)])
def test_stages_out_of_order(cuts: tuple[int, ...]) -> None:
    with pytest.raises(lp.BadInput, match=r"which must increase and lie in 1\.\.3"):
        Placement.at(wired(lp.Own()), cuts)


def test_stages_that_cannot_be_balanced() -> None:
    with pytest.raises(lp.BadInput, match=r"5 ranks, but 4 module\(s\).*Use modules=5 or more, or 4 ranks"):
        Placement.balanced(wired(lp.Own()), 5, [1.0] * 4)
    with pytest.raises(lp.BadInput, match="3 costs for 4 modules"):
        Placement.balanced(wired(lp.Own()), 2, [1.0] * 3)


def test_stages_are_cut_where_modules_are() -> None:
    placement = Placement.at(wired(lp.BackwardLinks(1)), (1, 3))  # segments: 2 in each module but the last
    assert placement.stages == (range(2), range(2, 6), range(6, 7))
    assert [placement.stage_of(s) for s in range(7)] == [0, 0, 1, 1, 1, 1, 2]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_balanced_cuts_against_brute_force(costs: list[int], data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(costs)))

    def worst(cuts: tuple[int, ...]) -> int:
        return max(sum(costs[a:b]) for a, b in pairwise((0, *cuts, len(costs))))

    cuts = balanced_cuts(costs, parts)
    assert len(cuts) == parts - 1
    assert all(a < b for a, b in pairwise((0, *cuts, len(costs))))
    assert worst(cuts) == min(map(worst, combinations(range(1, len(costs)), parts - 1)))


@given(
    st.sampled_from(Op),
    st.integers(0, 99),
    st.integers(0, 9),
    st.integers(0, 12),
    st.integers(0, 9),
    st.booleans(),
)
def test_every_action_is_read_as_it_is_printed(op: Op, s: int, flow: int, m: int, peer: int, late: bool) -> None:
    with_flow, with_peer = op in (Op.B, Op.SEND_B, Op.RECV_B), op in SENDS or op in RECEIVES
    action = Action(op, s, flow if with_flow else None, m, peer if with_peer else None, late)
    assert Action.parse(str(action)) == action
