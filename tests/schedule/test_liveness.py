"""Who takes each value, and which schedules are refused: properties of any credit table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn

import localprop as lp
from localprop.rule.table import T
from localprop.schedule.liveness import Liveness, check_hazards
from localprop.schedule.lowering import ORDERS, lower
from localprop.schedule.placement import Placement
from localprop.schedule.schedule import BACKWARDS, SENDS, Action, Op, Schedule
from localprop.schedule.sums import WEIGHT_GRADIENTS
from localprop.schedule.values import ACCUMULATORS, ROOTS, Kind, Value
from localprop.schedule.wire import wire
from localprop.schedule.wiring import Wiring
from tests.helpers.schedules import (
    partition_for,
    tables,
    ties_on_ranks,
    wire_mlp,
)

# --- plans ------------------------------------------------------------------------------------


class Observing(lp.LocalLoss):
    """A loss that looks at inner outputs, and perhaps at the input of its module."""

    def __init__(self, taps: tuple[str, ...], *, module_input: bool) -> None:
        super().__init__()
        self.taps, self.module_input = taps, module_input

    def forward(self, features: Tensor, aux: nn.Module, inputs: lp.LossInputs) -> Tensor:
        return features.square().mean()


@dataclass(frozen=True)
class ObservingLosses:
    """Builds losses for an MLP whose layer i begins with the module 2i.

    Attributes:
        layers: the layers whose inner outputs the losses of their modules look at.
        modules: the modules whose losses look at the module's input.
    """

    layers: frozenset[int]
    modules: frozenset[int]

    def __call__(self, point: lp.AttachPoint) -> lp.LocalLoss:
        observed = [layer for layer in range(point.start, point.layer + 1) if layer in self.layers]
        taps = tuple(f"{2 * layer}" for layer in observed)
        return Observing(taps, module_input=point.module in self.modules)


def add_second_losses(table: lp.CreditTable, modules: set[int]) -> lp.CreditTable:
    """A table with one more loss at the end of some modules, which trains their last layer only."""
    rows, at = [], []
    for module, (end, row) in enumerate(zip(table.ends, table.rows, strict=True)):
        rows.append(row)
        at.append(module)
        if module in modules:
            rows.append(tuple(T if layer == end else None for layer in range(len(row))))
            at.append(module)
    return lp.CreditTable(table.sizes, tuple(rows), tuple(at))


@dataclass(frozen=True)
class Plan:
    """The schedules of all ranks for one wiring, each with its liveness."""

    wiring: Wiring
    rank_schedules: tuple[Schedule, ...]
    livenesses: tuple[Liveness, ...]

    def __repr__(self) -> str:
        return "\n".join(map(str, (self.wiring.table, *self.rank_schedules)))


@st.composite
def cuts_of(draw: st.DrawFn, table: lp.CreditTable) -> set[int]:
    """The modules at which the ranks after the first begin."""
    modules = len(table.sizes)
    return draw(st.sets(st.integers(1, modules - 1))) if modules > 1 else set()


@st.composite
def wirings(draw: st.DrawFn, table: lp.CreditTable, cuts: set[int]) -> Wiring:
    """Any contexts, inner outputs, inputs of modules, and parameters that layers share."""
    modules, layers = len(table.sizes), sum(table.sizes)
    if modules > 1:
        table = add_second_losses(table, draw(st.sets(st.integers(0, modules - 2))))
    context = lp.ContextSupply(
        draw(st.booleans()), draw(st.integers(0, 3)), encoder=lambda *shapes: nn.Identity()
    )
    losses = ObservingLosses(
        frozenset(draw(st.sets(st.integers(0, layers - 1)))),
        frozenset(draw(st.sets(st.integers(0, modules - 1)))),
    )
    rule = lp.Rule(lambda partition: table, loss=losses, context=context)
    partition = partition_for(table, draw(ties_on_ranks(table, cuts)))
    return wire(rule, partition, weight_gradients=draw(st.sampled_from(WEIGHT_GRADIENTS)))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any table, wired like this, in one process or on 2 to 4 ranks, in micro-batches."""
    table, microbatches = draw(tables()), draw(st.integers(1, 3))
    cuts = draw(cuts_of(table))
    wiring = draw(wirings(table, cuts))
    replicas = draw(st.sampled_from([1, 2]))
    if not cuts and replicas == 1:
        schedules: tuple[Schedule, ...] = (Schedule.compile(wiring, microbatches),)
    else:
        schedules = lower(
            wiring,
            Placement.at(wiring, sorted(cuts)),
            microbatches,
            replicas=replicas,
            order=draw(st.sampled_from(ORDERS)),
        )
    livenesses = tuple(Liveness(wiring, schedule, replicas) for schedule in schedules)
    return Plan(wiring, schedules, livenesses)


# --- who takes what ---------------------------------------------------------------------------


def replay(liveness: Liveness) -> Iterator[tuple[Action, set[Value]]]:
    """Run the actions of one batch on names alone.

    Yields:
        Each action, and what is alive after it.
    """
    alive, sums = set[Value](), set[Value]()
    for action in liveness.order:
        reads, writes = liveness.operands[action]
        for value in reads:
            if value.kind in ACCUMULATORS:
                assert value in sums, f"{action} reads {value}, to which nothing has been added"
            elif value.kind not in ROOTS:
                assert value in alive, f"{action} reads {value}, which is not alive"
        alive -= {value for value in reads if liveness.takes(action, value)}
        for value in writes:
            assert value not in alive, f"{action} overwrites {value}"
            (sums if value.kind in ACCUMULATORS else alive).add(value)
        yield action, set(alive)


@settings(max_examples=150, deadline=None)
@given(plans())
def test_values_live_from_their_writing_to_their_last_reading(plan: Plan) -> None:
    """A value is written before it is read, its last reader takes it, and in the end none is left.

    So each is written once and read at least once. Sums are read after something has been added.
    """
    for liveness in plan.livenesses:
        replayed = list(replay(liveness))
        assert [(action, set(alive)) for action, alive in liveness.alive()] == replayed
        assert replayed[-1][1] == set()


@settings(max_examples=100, deadline=None)
@given(plans())
def test_nobody_reads_a_value_after_its_last_reader(plan: Plan) -> None:
    for liveness in plan.livenesses:
        written, readers = dict[Value, int](), dict[Value, list[Action]]()
        for place, action in enumerate(liveness.order):
            for value in liveness.operands[action].reads:
                readers.setdefault(value, []).append(action)
            for value in liveness.operands[action].writes:
                written[value] = place
        assert {value: actions[-1] for value, actions in readers.items()} == liveness.last_reader
        assert written == liveness.written
        for value in (*written, *readers):
            assert (value in liveness.last_reader) == (value in readers)
            takers = [action for action in liveness.order if liveness.takes(action, value)]
            assert takers == readers.get(value, [])[-1:]


@settings(max_examples=100, deadline=None)
@given(plans())
def test_the_marks_of_a_printed_plan(plan: Plan) -> None:
    """Each value but roots and sums has one †, in the line of the action that takes it."""
    for liveness in plan.livenesses:
        marked = Counter[tuple[str, Action]]()
        lines = str(liveness).splitlines()
        assert len(lines) == len(liveness.order)
        for action, line in zip(liveness.order, lines, strict=True):
            reads = line.split("->")[0].split()[1:]
            assert line.split()[0] == str(action)
            marked.update({(word, action) for word in reads if word.endswith("†")})
        assert marked == {
            (f"{value}†", reader): 1
            for value, reader in liveness.last_reader.items()
            if value.kind not in (*ROOTS, *ACCUMULATORS)
        }


@settings(max_examples=100, deadline=None)
@given(plans())
def test_each_step_reads_all_sums_of_its_segment(plan: Plan) -> None:
    for liveness in plan.livenesses:
        for action in liveness.order:
            written = {
                value
                for other in liveness.order
                for value in liveness.operands[other].writes
                if value.kind is Kind.WEIGHT_GRADIENT and value.at == action.segment
            }
            if action.op in (Op.S, Op.REDUCE_S):
                reads = liveness.operands[action].reads
                assert len(reads) == len(set(reads))
                assert set(reads) == written


# --- messages ---------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(plans())
def test_what_a_send_reads_its_receive_writes(plan: Plan) -> None:
    """A value has the same name on both ranks."""
    sent = Counter[tuple[int, Action, tuple[Value, ...]]]()
    received = Counter[tuple[int, Action, tuple[Value, ...]]]()
    for rank, liveness in enumerate(plan.livenesses):
        for action, (reads, writes) in liveness.operands.items():
            plain = action._replace(deferred=False)
            if action.op in SENDS:
                assert (len(reads), writes) == (1, ())
                assert action.peer is not None
                receive = plain._replace(op=SENDS[action.op], peer=rank)
                sent[action.peer, receive, reads] += 1
            elif action.op in SENDS.values():
                assert (reads, len(writes)) == ((), 1)
                received[rank, plain, writes] += 1
    assert sent == received


# --- hazards ----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(plans())
def test_compiled_and_lowered_schedules_have_no_hazards(plan: Plan) -> None:
    for schedule in plan.rank_schedules:
        check_hazards(schedule, plan.wiring.steps_of)


def find_backwards(wiring: Wiring, schedule: Schedule, step: Action) -> list[Action]:
    """The backwards that a step waits for, in the order in which they run for one batch."""
    uses = (a for a in schedule if step.segment in wiring.steps_of(a.segment))
    backwards = [action for action in uses if action.op in BACKWARDS]
    return sorted(backwards, key=lambda action: action.deferred)


@settings(max_examples=150, deadline=None)
@given(plans(), st.randoms(use_true_random=False))
def test_a_step_before_a_backward_of_its_segment_is_refused(plan: Plan, random: Random) -> None:
    schedule = random.choice(plan.rank_schedules)
    steps = [action for action in schedule if action.op is Op.S]
    assume(steps)
    step = random.choice(steps)
    moved = [action for action in schedule if action != step]
    backwards = find_backwards(plan.wiring, schedule, step)
    moved.insert(moved.index(backwards[-1]), step)
    # A deferred step may also come after a backward of the next batch then.
    words = f"^{step} would change parameters|[BW].* would add gradients of two"
    with pytest.raises(RuntimeError, match=words):
        check_hazards(Schedule(moved), plan.wiring.steps_of)


@settings(max_examples=150, deadline=None)
@given(plans(), st.randoms(use_true_random=False))
def test_a_backward_of_the_next_batch_before_a_step_is_refused(plan: Plan, random: Random) -> None:
    """A step is put off to the next batch and stays behind its backwards, which are not."""
    schedule = random.choice(plan.rank_schedules)
    steps = [action for action in schedule if action.op is Op.S and not action.deferred]
    assume(steps)
    step = random.choice(steps)
    first = find_backwards(plan.wiring, schedule, step)[0]
    late = [a._replace(deferred=True) if a == step else a for a in schedule]
    with pytest.raises(RuntimeError, match=f"^{first} would add gradients of two batches"):
        check_hazards(Schedule(late), plan.wiring.steps_of)


REFUSED = {
    # A step before a backward of its segment: the only one, a later micro-batch's, a later flow's.
    "0F 0L 0S 0B": "0S would change parameters",
    "0F 0F1 0L 0B 0S 0L1 0B1": "0S would change parameters",
    "0F 1F 1L 1B.0 0B 0S 2F 2L 2B 2S 1S 1B.1": "1S would change parameters",
    "0F 1F 1L 1B.0 1S 0B 0S 2F 2L 2B 2S 1B.1": "1S would change parameters",
    "0F 1F 1L 1B.0 0B 0S 2F 2L 2B 2S 1S 1W": "1S would change parameters",
    "0F 0B.0 0S' 0W": "0B.0 would add gradients of two batches",
    # The step of the batch before between a forward and its backward, which may be deferred, too.
    "0F 0S' 0SEND_F>1 1RECV_B<1 0B": "0S' would change parameters",
    "0F 1RECV_B<1' 0B' 0S' 0SEND_F>1": "0S' would change parameters",
    # A step before the gradients of its own batch.
    "0S 0F 0L 0B": "0S would step with gradients of another batch",
    "0F 0H 0L 0B 0S": "0H would step with gradients of another batch",
    "0B' 0S 0F": "0S would step with gradients of another batch",
    # The step comes after gradients of the next batch, or of some micro-batches only.
    "0F 0L 0B 0S'": "0B would add gradients of two batches",
    "0F 0L 0B 0S 0F1 0L1 0B1": "0B would add gradients of two batches",
    # The same of a loss's own parameters.
    "0F 0L 0H' 0B 0S": "0L would add gradients of two batches",
    "0F 0L 0H 0B 0F1 0L1 0B1 0S": "0L would add gradients of two batches",
    "0F 0L 0L.1 0H 0H.1' 0B 0S": "0L.1 would add gradients of two batches",
}


@pytest.mark.parametrize("text", REFUSED)
def test_hazards_by_hand(text: str) -> None:
    with pytest.raises(RuntimeError, match=rf"^{REFUSED[text]}"):
        check_hazards(Schedule.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "0F 0L 0B",  # `Learner.backward`, or a segment that somebody else steps
        "0F 0L 0H 0B 0S",
        "0F 0F1 0L 0B 0L1 0H 0B1 0S",
        "1RECV_B<1' 0B' 0S' 0F 0SEND_F>1",
        "0S' 0F 0L 0REDUCE_H 0B 0H 0REDUCE_S",
    ],
)
def test_schedules_without_hazards(text: str) -> None:
    check_hazards(Schedule.parse(text))


# --- an error of a schedule -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1F 0F 0L 0H 0B 0S 1L 1B 1S", "1F reads h0, which nothing has written"),
        ("0L 0F 0H 0B 0S 1F 1L 1B 1S", "0L reads f0, which nothing has written"),
        ("0F 0B 0L 0H 0S 1F 1L 1B 1S", "0B reads g0<0L, which nothing has written"),
    ],
)
def test_a_reading_before_the_writing_is_refused(text: str, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        Liveness(wire_mlp(lp.LocalCredit(), 2, 2), Schedule.parse(text))


def test_a_second_order_gradient_goes_from_loss_to_loss() -> None:
    """Such a loss differentiates through its module, whose graph no backward reads.

    Loss 1 compares the gradient at its module's input i1 with k0, which loss 0 has left for it.
    """
    layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 8, 8))
    wiring = wire(lp.sgr(), lp.Partition.uniform(layers, 2))
    liveness = Liveness(wiring, Schedule.compile(wiring))
    expected = """
        0F    x                     -> h0 f0
        0L    f0† x y               -> loss0 H0 k0 G0
        0H    H0                    ->
        0S    G0                    ->
        1F    h0†                   -> f1 i1
        1L    f1† x y i1† k0†       -> loss1 G1
        1S    G1                    ->
    """
    assert str(liveness).split() == expected.split()
    alive = {str(action): " ".join(map(str, values)) for action, values in liveness.alive()}
    assert (alive["0S"], alive["1F"], alive["1L"]) == ("h0 k0", "k0 f1 i1", "")
