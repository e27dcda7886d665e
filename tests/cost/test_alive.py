"""Which values of a step are alive: predicted in bytes, checked in a real step, and printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.cost.alive import check_values
from localprop.engine.loss import Losses
from localprop.engine.store import Store
from localprop.schedule.values import Kind, Value
from localprop.tasks.batch import Batch
from tests.helpers.methods import METHODS, Method
from tests.helpers.reference import sgd
from tests.helpers.small_mlp import (
    END_TO_END,
    GREEDY,
    SAMPLES,
    list_alive,
    make_batch,
    make_mlp,
    make_started,
    tamper_in,
)
from tests.helpers.small_resnet import BATCHES, make_learner

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recomputed": {"recompute": True},
    "micro-batches": {"microbatches": 2},
}

# --- check_values: only what the plan lists is alive ------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_only_what_the_plan_lists_is_alive(method: Method, variant: str) -> None:
    """For every rule; a second-order one is never recomputed."""
    learner = make_learner(method, VARIANTS[variant])
    learner.step(BATCHES[0])
    check_values(learner.engine, Batch.of(BATCHES[1]), number=1)


def check(learner: lp.Learner) -> Losses:
    """Check its second step."""
    return check_values(learner.engine, Batch.of(make_batch()), number=1)


def test_a_checked_step_is_an_ordinary_step() -> None:
    assert check(make_started(GREEDY)) == make_started(GREEDY).step(make_batch())


@pytest.mark.parametrize(
    ("rule", "module", "last"),
    [
        # The graph of Tanh does not keep its input, but frames do until the forward goes on.
        (GREEDY, "0", "1F"),
        # Output 0 is the input of layer 1, whose graph keeps it.
        (GREEDY, "1", "1B"),
        # The loss is the last to read the network's output.
        (GREEDY, "4", "2L"),
        (END_TO_END, "0", "1F"),
        (END_TO_END, "1", "0B"),
        (END_TO_END, "3", "1B"),
        (END_TO_END, "4", "2L"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_stashed_output_is_found_when_it_should_be_dead(
    rule: lp.Rule, module: str, last: str
) -> None:
    """By the action behind which nothing else holds it."""
    learner = make_started(rule)
    stash: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> None:
        stash.append(output.detach())

    with (
        learner.model.get_submodule(module).register_forward_hook(keep),
        pytest.raises(AssertionError, match=rf"^after {last}: 1 tensor"),
    ):
        check(learner)
    assert stash


class Block(nn.Module):
    """A layer with 8 numbers between its input and its output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 8), nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.first(x).tanh())
        return output


def make_blocks() -> lp.Learner:
    """Two blocks that run again, of an input of 4 numbers and an output of 6."""
    torch.manual_seed(0)
    learner = lp.Learner(
        nn.Sequential(Block(4, 6), Block(6, 3)),
        END_TO_END,
        modules=2,
        optimizer=sgd,
        sample=make_batch(),
        recompute=True,
    )
    learner.step(make_batch())
    return learner


@pytest.mark.parametrize("module", [0, 1])
def test_a_stashed_output_of_a_second_run_is_found(module: int) -> None:
    learner = make_blocks()
    stash: list[Tensor] = []
    layer = learner.model.get_submodule(f"{module}.first")

    def keep(*args: Any) -> None:
        recompute = learner.engine.recompute
        assert recompute is not None
        if recompute._running:
            stash.append(args[-1].detach().clone())

    with (
        layer.register_forward_hook(keep),
        pytest.raises(AssertionError, match=rf"^after {module}B: 1 tensor"),
    ):
        check(learner)
    assert stash


def test_a_stashed_gradient_is_found() -> None:
    """Autograd copies a gradient that somebody else holds, so that nothing on the plan does."""
    learner = make_started(END_TO_END)
    stash: list[Tensor] = []

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].register_hook(stash.append)  # type: ignore[no-untyped-call]

    with (
        learner.model.get_submodule("4").register_forward_pre_hook(watch),
        pytest.raises(AssertionError, match=r"^after 2B: 1 tensor"),
    ):
        check(learner)
    assert stash


def test_the_end_of_a_forward_is_dead_where_callers_keep_arguments() -> None:
    """A failed compilation leaves torch's hook on Python's calls, whose callers then keep what they
    hand over until the call returns.
    """

    def fail(graph: object, inputs: object) -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(Exception, match="on purpose"):
        torch.compile(nn.Linear(2, 2), backend=fail)(torch.zeros(2, 2))
    check(make_started(GREEDY))


def drop_graph(store: Store) -> None:
    store.pop(Value(Kind.GRAPH, 0))


def keep_features(store: Store) -> None:
    store[Value(Kind.FEATURES, 0)] = torch.ones(1)


def add_leaf(store: Store) -> None:
    store[Value(Kind.LEAF, 2, microbatch=1)] = torch.ones(1)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (drop_graph, "graph0 should be alive"),
        (keep_features, "f0 should be dead"),
        (add_leaf, "leaf2/1 should be dead"),
    ],
)
def test_a_store_that_differs_from_the_plan_is_found(
    tamper: Callable[[Store], None], message: str
) -> None:
    learner = make_started(GREEDY)
    with (
        tamper_in(learner, learner.heads.get_submodule("0.loss"), tamper),
        pytest.raises(AssertionError, match=f"^after 0L: {message}$"),
    ):
        check(learner)


def test_other_failures_pass_through() -> None:
    """An error of the model stays the engine's report, even if it is an AssertionError."""
    learner = make_started(GREEDY)

    def fail(*_: object) -> None:
        raise AssertionError("on purpose")

    with (
        learner.model.get_submodule("2").register_forward_hook(fail),
        pytest.raises(lp.StepFailed, match="on purpose"),
    ):
        check(learner)


# --- values: bytes by hand --------------------------------------------------------------------

# Outputs of the layers in float32, and a graph's root, which is a scalar.
H0, H1, H2 = SAMPLES * 8 * 4, SAMPLES * 6 * 4, SAMPLES * 3 * 4


def test_values_of_greedy_by_hand() -> None:
    """Tanh's graph keeps its output, which the features are a view of; that of Linear its input."""
    assert list_alive(make_mlp(GREEDY).values()) == {
        "0F": {"graph0": H0, "f0": 0},
        "0L": {"graph0": H0, "g0<0L": H0},
        "0H": {"graph0": H0, "g0<0L": H0},
        "0B": {},
        "0S": {},
        "1F": {"graph1": H0 + H1, "f1": 0},
        "1L": {"graph1": H0 + H1, "g1<1L": H1},
        "1H": {"graph1": H0 + H1, "g1<1L": H1},
        "1B": {},
        "1S": {},
        "2F": {"graph2": H1, "f2": H2},
        "2L": {"graph2": H1, "g2<2L": H2},
        "2B": {},
        "2S": {},
    }


def test_values_of_end_to_end_by_hand() -> None:
    """A leaf is the output before it, which that layer's graph holds already."""
    reading = make_mlp(END_TO_END).values()
    first = {"graph0": H0}
    second = {**first, "leaf1": 0, "graph1": H1}
    third = {**second, "leaf2": 0, "graph2": 0}
    assert list_alive(reading) == {
        "0F": first,
        "1F": second,
        "2F": {**third, "f2": H2},
        "2L": {**third, "g2<2L": H2},
        "2B": {**second, "g1<2B": H1},
        "2S": {**second, "g1<2B": H1},
        "1B": {**first, "g0<1B": H0},
        "1S": {**first, "g0<1B": H0},
        "0B": {},
        "0S": {},
    }
    # Parameters with momentum, the batch and the roots' scalar; then what the first layer makes.
    resting = 2 * 4 * (40 + 54 + 21) + SAMPLES * (4 * 4 + 8) + 4
    assert reading.memory.resting_bytes == resting
    assert reading.actions[0].peak_bytes == resting + 2 * H0
    # All that was alive before 1B, what it makes, and the gradients of layer 1.
    assert str(reading.peak.action) == "1B"
    assert reading.before(reading.peak) == reading.actions[5].values
    assert reading.before(reading.actions[0]) == {}


def test_values_of_a_recompute_by_hand() -> None:
    """Graphs hold the inputs of blocks, and nothing of what is within."""
    alive = list_alive(make_blocks().values())
    assert alive["0F"] == {"graph0": 0}  # the batch is nobody's
    assert alive["1F"] == {"graph0": 0, "leaf1": H1, "graph1": 0, "f1": H2}
    assert alive["1B"] == {"graph0": 0, "g0<1B": H1}


def test_values_of_another_batch() -> None:
    reading = make_mlp(GREEDY).values(make_batch(2 * SAMPLES))
    assert list_alive(reading)["2F"] == {"graph2": 2 * H1, "f2": 2 * H2}


@pytest.mark.parametrize("variant", ["plain", "recomputed"])
@pytest.mark.parametrize("method", [lp.greedy, lp.end_to_end, lp.backlink, lp.contsup, lp.hpff])
def test_memory_of_values_is_that_of_memory(method: Method, variant: str) -> None:
    """To the byte; and values are a part of what is alive at each action's peak."""
    learner = make_learner(method, VARIANTS[variant])
    reading = learner.values()
    assert reading.memory == learner.memory()
    assert [each.action for each in reading.actions] == list(learner.schedule)
    for each in reading.actions:
        assert reading.memory.resting_bytes + sum(each.values.values()) <= each.peak_bytes
    peaks = [each.peak_bytes for each in reading.actions]
    assert reading.peak is reading.actions[peaks.index(max(peaks))]
    assert reading.peak.peak_bytes == reading.memory.peak_bytes


# --- explain ----------------------------------------------------------------------------------

LARGE = 2**16  # samples: outputs of 2, 1.5 and 0.75 MiB
PEAK = "largest first, in MiB: graph0 2.0, graph1 1.5, f2 0.8, g2<2L 0.8 ("


def test_explain_names_the_peak() -> None:
    text = make_mlp(END_TO_END, samples=LARGE).explain()
    last = text.splitlines()[-1]
    assert last.startswith("The peak is at 2L. ")
    assert PEAK in last


def test_explain_lists_the_values_of_each_action() -> None:
    """Below what it prints without them."""
    learner = make_mlp(END_TO_END, samples=LARGE)
    reading, plain = learner.values(), learner.explain()
    text = learner.explain(values=True)
    assert text.startswith(f"{plain}\n\naction ")
    assert PEAK in text
    lines = text.removeprefix(plain).splitlines()[3:]
    for line, each in zip(lines, reading.actions, strict=True):
        action, peak, *_ = line.split()
        assert (action, peak) == (str(each.action), f"{each.peak_bytes / 2**20:.1f}")
    listed = [line.split(maxsplit=2)[2:] for line in lines]
    assert listed[3] == ["graph0 2.0, leaf1, graph1 1.5, leaf2, graph2, g2<2L 0.8"]
    assert listed[6] == ["graph0 2.0, g0<1B 2.0"]
    assert listed[-1] == []
