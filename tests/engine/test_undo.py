"""A step that fails is no step: whatever fails, and whatever layers keep from call to call."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

import localprop as lp
from localprop.cost.fake_engine import list_held_tensors
from localprop.cost.memory import measure_peak
from localprop.network.module_state import ModuleState
from localprop.schedule.schedule import Action
from localprop.tasks.batch import Batch
from tests.engine.test_second_runs import BATCHES, assert_same, build
from tests.helpers.stateful_layers import LAYERS

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = [(torch.randn(8, 3, 8, 8, generator=GENERATOR), torch.arange(8) % 10) for _ in range(3)]
RULES = {
    "greedy": lp.greedy(),
    "backlink": lp.backlink(layers=1),
    "interlocking": lp.interlocking(2),
    "contsup": lp.contsup(),
    "sgr": lp.sgr(),  # of second order
    "man": lp.man(),  # copies parameters
    "end to end": lp.end_to_end(),
}


def adam(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def make(rule: lp.Rule, optimizer: Any = adam, **options: Any) -> lp.Learner:
    torch.manual_seed(0)
    model = lp.models.resnet8()
    given = optimizer(list(model.parameters())) if options.pop("shared", False) else optimizer
    modules = 1 if rule == lp.end_to_end() else 3
    return lp.Learner(model, rule, modules=modules, optimizer=given, sample=IMAGES[0], **options)


@contextmanager
def catching_ctrl_c() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at Ctrl-C; gives the signals that have arrived."""
    arrived: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        arrived.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield arrived
    finally:
        signal.signal(signal.SIGINT, before)


def list_tensors(learner: lp.Learner) -> Iterator[tuple[str, Tensor]]:
    """All that the next step depends on."""
    for kind, module in learner.trained_modules().items():
        for name, tensor in module.state_dict().items():
            yield f"{kind}.{name}", tensor
    for number, optimizer in enumerate(learner.optimizers):
        for place, entries in enumerate(optimizer.state.values()):
            for key, value in entries.items():
                yield f"{number}.{place}.{key}", torch.as_tensor(value)


def assert_equal(one: lp.Learner, other: lp.Learner) -> None:
    pairs = zip(list_tensors(one), list_tensors(other), strict=True)
    assert [name for (name, a), (_, b) in pairs if not torch.equal(a, b)] == []
    assert one.steps == other.steps
    assert all(parameter.grad is None for parameter in one.parameters())


class Interrupt:
    """Raises before the action of a number."""

    def __init__(self, number: int, error: BaseException) -> None:
        self.left, self.error = number, error

    def __call__(self, action: Action) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error


@pytest.mark.parametrize("options", [{}, {"microbatches": 2}, {"shared": True}], ids=str)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_failure_before_any_action_leaves_all_as_it_was(
    rule: lp.Rule, options: dict[str, Any]
) -> None:
    if rule == lp.man() and options.get("shared"):
        pytest.skip("its copies follow the steps of segments, and one optimizer steps after all")
    learner, undisturbed = make(rule, **options), make(rule, **options)
    for batch in IMAGES[:2]:  # the first step makes the optimizer's state
        for number in range(len(learner.schedule)):
            error = KeyboardInterrupt() if number % 2 else ValueError("no luck")
            with pytest.raises((KeyboardInterrupt, lp.StepFailed)):
                learner.step(IMAGES[2], observe=Interrupt(number, error))
            assert_equal(learner, undisturbed)
        losses, expected = learner.step(batch), undisturbed.step(batch)
        assert all(map(torch.equal, losses, expected))
        assert_equal(learner, undisturbed)


class FailsAt(torch.optim.SGD):
    """Fails behind its own step, when the number of steps of all such optimizers has come."""

    left = -1

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        FailsAt.left -= 1
        if FailsAt.left == 0:
            raise ArithmeticError("out of memory, say")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("number", [1, 3])
def test_what_was_stepped_before_an_optimizer_fails_is_taken_back(
    shared: bool, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fragile(parameters: list[nn.Parameter]) -> Optimizer:
        return FailsAt(parameters, lr=0.1, momentum=0.9)

    learner, undisturbed = (make(lp.greedy(), fragile, shared=shared) for _ in range(2))
    learner.step(IMAGES[0])
    undisturbed.step(IMAGES[0])
    monkeypatch.setattr(FailsAt, "left", 1 if shared else number)
    with pytest.raises((lp.StepFailed, ArithmeticError)):
        learner.step(IMAGES[1])
    assert_equal(learner, undisturbed)


@pytest.mark.parametrize("layer", LAYERS)
def test_what_layers_keep_from_call_to_call_is_put_back(layer: str) -> None:
    def make_one() -> tuple[nn.Module, lp.Learner]:
        model = build(layer)
        options: dict[str, Any] = {"modules": 4, "optimizer": adam, "sample": BATCHES[0]}
        learner = lp.Learner(model, lp.greedy(), **options)
        random.seed(0)
        numpy.random.seed(0)
        for batch in BATCHES[:2]:
            learner.step(batch)
        return model, learner

    expected, undisturbed = make_one()
    undisturbed.step(BATCHES[2])
    model, learner = make_one()
    draws = torch.get_rng_state()
    for number in range(0, len(learner.schedule), 3):
        with pytest.raises(lp.StepFailed):
            learner.step(BATCHES[3], observe=Interrupt(number, ValueError("no luck")))
    assert torch.equal(draws, torch.get_rng_state())
    learner.step(BATCHES[2])
    assert_same(model, expected)


class Table(nn.Module):
    """A buffer that is too large to be copied before it has ever changed."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(70_000))
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        output: Tensor = self.linear(x)
        return output


def test_large_buffers_are_copied_once_they_have_changed() -> None:
    model, batch = Table(), (torch.randn(4, 4), torch.arange(4) % 3)
    learner = lp.Learner(model, lp.end_to_end(), modules=1, optimizer=adam, sample=batch)
    failing = Interrupt(2, ValueError("no luck"))
    with pytest.raises(lp.StepFailed) as caught:
        learner.step(batch, observe=failing)
    assert caught.value.__notes__ == [
        "The model has written into seen for the first time, of which no copy was there: it stays "
        "changed."
    ]
    before = float(model.seen[0])
    with pytest.raises(lp.StepFailed) as caught:
        learner.step(batch, observe=failing)
    assert not hasattr(caught.value, "__notes__")
    assert float(model.seen[0]) == before


# Python ignores what is raised in the callback of a weak reference, or in a collection of garbage.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_time_leaves_all_as_it_was() -> None:
    learner, undisturbed = make(lp.backlink(layers=1)), make(lp.backlink(layers=1))
    draw, interrupted = random.Random(0), 0
    with catching_ctrl_c() as arrived:
        for _ in range(60):
            number = learner.steps
            arrived.clear()
            press = signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
            timer = threading.Timer(draw.uniform(1e-4, 0.02), *press)
            try:
                timer.start()
                learner.step(IMAGES[number % 3])
                while not arrived:  # the step was faster
                    time.sleep(1e-4)
            except KeyboardInterrupt:
                interrupted += learner.steps == number
            while undisturbed.steps < learner.steps:
                undisturbed.step(IMAGES[undisturbed.steps % 3])
            assert_equal(learner, undisturbed)
    assert interrupted > 5


def predict_early(learner: lp.Learner, batch: tuple[Tensor, Tensor]) -> Tensor:
    return learner.predict(batch[0], module=1)


@pytest.mark.parametrize(
    ("owner", "name"), [(nn.Module, "register_forward_hook"), (RemovableHandle, "remove")]
)
@pytest.mark.parametrize("use", [lp.Learner.step, predict_early], ids=["step", "exit"])
def test_ctrl_c_leaves_no_hook_behind(
    use: Callable[[lp.Learner, Any], object],
    owner: type,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes when a hook has just been put on, and when one has just been taken off."""
    learner = make(lp.greedy())
    original = getattr(owner, name)

    def press_ctrl_c(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)
        return result

    with catching_ctrl_c(), monkeypatch.context() as patched:
        patched.setattr(owner, name, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            use(learner, IMAGES[0])
    assert not any(module._forward_hooks for module in learner.model.modules())


@pytest.mark.parametrize("shared", [False, True])
def test_an_interrupt_after_the_step_was_taken_takes_nothing_back(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, undisturbed = (make(lp.greedy(), shared=shared) for _ in range(2))

    def interrupt(state: ModuleState) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ModuleState, "forget", interrupt)
        with pytest.raises(KeyboardInterrupt):
            learner.step(IMAGES[0])
    undisturbed.step(IMAGES[0])
    assert learner.steps == 1
    assert_equal(learner, undisturbed)
    with pytest.raises(lp.StepFailed):  # the next one is taken back as ever
        learner.step(IMAGES[1], observe=Interrupt(5, ValueError("no luck")))
    assert_equal(learner, undisturbed)


def test_steps_that_are_not_atomic_go_as_far_as_they_come() -> None:
    learner = make(lp.greedy(), atomic=False)
    undisturbed = make(lp.greedy(), atomic=False)
    place = [str(action) for action in learner.schedule].index("0S")
    with pytest.raises(lp.StepFailed, match="Segments stepped already: 0"):
        learner.step(IMAGES[0], observe=Interrupt(place + 1, ValueError("no luck")))
    moved = [
        name
        for (name, a), (_, b) in zip(list_tensors(learner), list_tensors(undisturbed), strict=False)
        if not torch.equal(a, b)
    ]
    assert "model.conv.weight" in moved


@pytest.mark.parametrize("rule", [lp.greedy(), lp.backlink(layers=1)], ids=["greedy", "backlink"])
def test_atomic_steps_train_to_the_same_bits(rule: lp.Rule) -> None:
    one, other = make(rule), make(rule, atomic=False)
    for batch in IMAGES:
        one.step(batch)
        other.step(batch)
    assert_equal(one, other)
    assert str(one.schedule) != str(other.schedule)


@pytest.mark.parametrize("shared", [False, True])
def test_the_bytes_of_copies_are_predicted(shared: bool) -> None:
    learner = make(lp.greedy(), shared=shared)
    for _ in range(2):
        learner.step(IMAGES[0])
    modules, batch = learner.trained_modules().values(), Batch.of(IMAGES[0])
    held = [*list_held_tensors(modules, learner.optimizers, batch), learner.engine.plan.scalar]
    # On images of 8x8 pixels the copies of weights and of Adam's state are the peak.
    read = measure_peak(lambda: learner.step(IMAGES[0]), held, torch.device("cpu"))
    assert learner.memory().peak_bytes == read.peak_bytes
    weights = sum(parameter.nbytes for parameter in learner.parameters())
    assert read.peak_bytes > read.resting_bytes + 3 * weights
