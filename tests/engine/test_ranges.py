"""A step in torch's profiler: each action is a range, from its beginning to that of the next."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

import localprop as lp
from localprop.engine import ranges
from localprop.schedule.schedule import Action, Op
from tests.helpers.ranks import COMBINED, RankPool, Run, noise
from tests.helpers.reference import aux_of, network, sgd


def record(run: Callable[[], object]) -> list[FunctionEvent]:
    """What torch's profiler records of a function, in the order of the beginnings."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    return sorted(recorded.events(), key=lambda event: event.time_range.start)


def select_ranges(events: list[FunctionEvent], prefix: str = "localprop ") -> list[FunctionEvent]:
    return [event for event in events if event.name.startswith(prefix)]


def names_of(events: list[FunctionEvent]) -> list[str]:
    return [event.name for event in select_ranges(events)]


def names_for(learner: lp.Learner, actions: list[Action]) -> list[str]:
    """What the ranges of some actions should be called."""
    layers, segments = learner.partition.layers.names, learner.wiring.segments
    names = []
    for action in actions:
        first, last = (layers[segments[action.segment].layers[i]] for i in (0, -1))
        names.append(f"localprop {action} {first if first == last else f'{first} .. {last}'}")
    return names


def assert_apart(events: list[FunctionEvent]) -> None:
    """Assert that each event ends before the next one begins."""
    spans = [(event.name, event.time_range.start, event.time_range.end) for event in events]
    overlaps = [(one[0], two[0]) for one, two in itertools.pairwise(spans) if one[2] > two[1]]
    assert overlaps == []


def find_range(event: FunctionEvent) -> str:
    """The action in whose range an event lies, or "" for none."""
    while not event.name.startswith("localprop "):
        if event.cpu_parent is None:
            return ""
        event = event.cpu_parent
    return event.name.split()[1]


def make(rule: lp.Rule, name: str = "resnet14", **options: Any) -> lp.Learner:
    """A learner before its second step, since the first one makes the state of optimizers."""
    model, batches = network(name)
    learner = lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batches[0], **options)
    learner.step(batches[0])
    return learner


BATCH = network("resnet14")[1][1]
CASES: dict[str, tuple[lp.Rule, dict[str, Any]]] = {
    "greedy": (lp.greedy(), {}),
    "backlink": (lp.backlink(), {}),
    "recomputed": (lp.end_to_end(), {"recompute": True}),
    "micro-batches": (lp.interlocking(), {"microbatches": 3}),
    "all": (COMBINED, {"microbatches": 2, "recompute": True}),
}
each_case = pytest.mark.parametrize("case", CASES)


@each_case
def test_each_action_is_a_range(case: str) -> None:
    rule, options = CASES[case]
    learner = make(rule, **options)
    events = record(lambda: learner.step(BATCH))
    assert names_of(events) == names_for(learner, [*learner.schedule])
    assert_apart(select_ranges(events))


@each_case
def test_what_runs_lies_in_the_range_of_its_action(case: str) -> None:
    """Forwards in F and L, or in B and W where they run again; backwards in L, B and W, steps in S
    and H.
    """
    rule, options = CASES[case]
    learner = make(rule, **options)
    events = record(lambda: learner.step(BATCH))
    for prefix, ops in {
        "aten::conv2d": {Op.F, Op.L, Op.B, Op.W} if learner.engine.recompute else {Op.F, Op.L},
        "ConvolutionBackward0": {Op.L, Op.B, Op.W},
        "Optimizer.step#": {Op.S, Op.H},
    }.items():
        ran = [find_range(event) for event in select_ranges(events, prefix)]
        assert ran
        assert {Action.parse(text).op for text in ran} <= ops
    forwards = {find_range(event) for event in select_ranges(events, "aten::conv2d")}
    assert forwards >= {str(action) for action in learner.schedule if action.op is Op.F}


def test_an_observer_is_called_between_two_ranges() -> None:
    learner = make(lp.backlink())
    observed = []

    def observe(action: Action) -> None:
        with record_function("the observer"):
            observed.append(action)

    events = record(lambda: learner.step(BATCH, observe=observe))
    assert observed == [*learner.schedule]
    assert names_of(events) == names_for(learner, observed)
    marks = [e for e in events if e.name.startswith(("localprop ", "the observer"))]
    assert len(marks) == 2 * len(observed)
    assert_apart(marks)


def test_a_step_that_is_not_profiled_begins_no_range(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def begin(name: str) -> record_function:
        begun.append(name)
        return record_function(name)

    monkeypatch.setattr(ranges, "record_function", begin)
    learner = make(lp.greedy())
    learner.step(BATCH)
    assert begun == []
    record(lambda: learner.step(BATCH))
    assert len(begun) == len(learner.schedule)
    learner.step(BATCH)
    assert len(begun) == len(learner.schedule)


def test_profilers_of_all_threads_count() -> None:
    learner = make(lp.greedy())
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, experimental_config=everywhere) as recorded:
        learner.step(BATCH)
    assert len(names_of(recorded.events())) == len(learner.schedule)


# --- failures -----------------------------------------------------------------------------------


def fail(*_: object) -> None:
    raise ArithmeticError("not today")


def fail_in_layer(learner: lp.Learner) -> nn.Module:
    return learner.model.get_submodule(learner.partition.layers.names[2])


def fail_in_head(learner: lp.Learner) -> nn.Module:
    return aux_of(learner, 1)


@pytest.mark.parametrize("where", [fail_in_layer, fail_in_head])
def test_a_failed_step_ends_its_ranges(where: Callable[[lp.Learner], nn.Module]) -> None:
    learner = make(lp.backlink())
    module = where(learner)
    observed: list[Action] = []

    def fail_and_go_on() -> None:
        handle = module.register_forward_pre_hook(fail)
        with pytest.raises(lp.StepFailed, match="not today"):
            learner.step(BATCH, observe=observed.append)
        handle.remove()
        with record_function("localprop goes on"):
            learner.step(BATCH)

    events = record(fail_and_go_on)
    failed = names_for(learner, observed)
    whole = names_for(learner, [*learner.schedule])
    assert names_of(events) == [*failed, "localprop goes on", *whole]
    assert_apart(select_ranges(events)[: len(failed) + 1])


def test_an_observer_that_fails_leaves_no_range_open() -> None:
    learner = make(lp.backlink())

    def observe(action: Action) -> None:
        if action.op is Op.L:
            fail()

    def fail_and_go_on() -> None:
        with pytest.raises(lp.StepFailed, match="not today"):
            learner.step(BATCH, observe=observe)
        with record_function("localprop goes on"):
            torch.zeros(1)

    events = select_ranges(record(fail_and_go_on))
    assert events[-1].name == "localprop goes on"
    assert Action.parse(events[-2].name.split()[1]).op is Op.F
    assert_apart(events)


# --- several ranks --------------------------------------------------------------------------------


def record_on_rank(run: Run) -> tuple[list[str], list[str]]:
    """The ranges of two steps and a flush, and what they should be called."""
    torch.manual_seed(0)
    batches = noise()
    learner = lp.Learner(
        run.build(),
        run.rule,
        sample=batches[0],
        optimizer=run.optimizer,
        ranks=lp.Ranks(timeout_s=20.0, **run.ranks),
        **run.options,
    )

    def train() -> None:
        for batch in batches[:2]:
            learner.step(batch)
        learner.flush()

    events = record(train)
    assert_apart(select_ranges(events))
    deferred = [action for action in learner.schedule if action.deferred]
    return names_of(events), names_for(learner, [*learner.schedule * 2, *deferred])


@pytest.mark.xdist_group("ranks")
def test_messages_and_sums_are_ranges(pool: RankPool) -> None:
    run = Run(COMBINED, options={"modules": 4, "microbatches": 2}, ranks={"replicas": 2})
    outcomes = pool.run(4, record_on_rank, run)
    text = ""
    for outcome in outcomes:
        assert isinstance(outcome, tuple), outcome
        found, expected = outcome
        assert found == expected
        text += " ".join(found)
    kinds = [*(op for op in Op if "_" in op), "'"]
    assert [kind for kind in kinds if kind not in text] == []
