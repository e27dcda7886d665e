"""What a step leaves behind, for each method: after a failure nothing, otherwise its losses."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.cost.fake_engine import list_held_tensors
from localprop.cost.memory import LiveBytes
from localprop.engine import engine
from localprop.engine.optimizers import values_equal
from localprop.engine.store import StepContext, Store
from localprop.schedule.schedule import Op
from localprop.state import restore, state_of
from localprop.tasks.batch import Batch as LossBatch
from tests.helpers.methods import Method, each_method
from tests.helpers.small_resnet import (
    BATCHES,
    MIDDLE,
    Batch,
    make_learner,
)
from tests.helpers.training import hooks_of

PLAIN: dict[str, Any] = {}
RECOMPUTED: dict[str, Any] = {"recompute": True, "microbatches": 2}
each_variant = pytest.mark.parametrize("options", [PLAIN, RECOMPUTED], ids=["plain", "recomputed"])


# --- failures ---------------------------------------------------------------------------------


class Trigger:
    """Raises an exception at one of its calls.

    Args:
        error: what to raise.
        call: at which call, counted from 1; 0 for never.
    """

    def __init__(self, error: type[BaseException] = ArithmeticError, call: int = 0) -> None:
        self.error, self.call, self.calls = error, call, 0

    def __call__(self, *args: object, **kwargs: object) -> None:
        self.calls += 1
        if self.calls == self.call:
            raise self.error("on purpose")


@contextmanager
def fail_in_a_layer(learner: lp.Learner, trigger: Trigger) -> Iterator[None]:
    """In the forward of a layer in the middle, and in its recompute."""
    with learner.model.get_submodule(f"{MIDDLE}.dropout").register_forward_hook(trigger):
        yield


@contextmanager
def fail_in_a_loss(learner: lp.Learner, trigger: Trigger) -> Iterator[None]:
    """Behind the forward of the loss in the middle."""
    losses = [*learner.heads]
    loss = learner.heads.get_submodule(f"{losses[len(losses) // 2]}.loss")
    with loss.register_forward_hook(trigger):
        yield


@contextmanager
def fail_in_the_backward_of(module: nn.Module, trigger: Trigger) -> Iterator[None]:
    """In the hook of a module's output."""

    def watch(module: nn.Module, args: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(trigger)  # type: ignore[no-untyped-call]

    with module.register_forward_hook(watch):
        yield


def fail_in_a_backward(learner: lp.Learner, trigger: Trigger) -> AbstractContextManager[None]:
    """In the backward of the layer in the middle."""
    return fail_in_the_backward_of(learner.model.get_submodule(f"{MIDDLE}.conv2"), trigger)


def fail_in_the_backward_of_a_loss(
    learner: lp.Learner, trigger: Trigger
) -> AbstractContextManager[None]:
    """At the beginning of the backward of the first loss."""
    loss = learner.heads.get_submodule(f"{next(iter(learner.heads))}.loss")
    return fail_in_the_backward_of(loss, trigger)


@contextmanager
def fail_before_an_optimizer(learner: lp.Learner, trigger: Trigger) -> Iterator[None]:
    """Before the step of an optimizer in the middle."""
    optimizer = learner.optimizers[len(learner.optimizers) // 2]
    handle = optimizer.register_step_pre_hook(trigger)
    yield
    handle.remove()


@contextmanager
def fail_after_an_optimizer(learner: lp.Learner, trigger: Trigger) -> Iterator[None]:
    """After the step of an optimizer in the middle, whose gradients are still there."""
    optimizer = learner.optimizers[len(learner.optimizers) // 2]
    handle = optimizer.register_step_post_hook(trigger)
    yield
    handle.remove()


Place = Callable[[lp.Learner, Trigger], AbstractContextManager[None]]
PLACES: list[Place] = [
    fail_in_a_layer,
    fail_in_a_loss,
    fail_in_a_backward,
    fail_in_the_backward_of_a_loss,
    fail_before_an_optimizer,
    fail_after_an_optimizer,
]
# An exception of each kind in the step, and what the caller gets.
ERRORS: dict[type[BaseException], type[BaseException]] = {
    ArithmeticError: lp.StepFailed,
    KeyboardInterrupt: KeyboardInterrupt,
}


def fail(learner: lp.Learner, batch: Batch, place: Place, trigger: Trigger) -> None:
    """Make a step fail, and forget the exception, whose traceback refers to tensors."""
    caught: type[BaseException] | None = None
    with place(learner, trigger):
        try:
            learner.step(batch)
        except (lp.StepFailed, KeyboardInterrupt) as error:
            caught = type(error)
    assert caught is ERRORS[trigger.error]


def count_calls(learner: lp.Learner, batch: Batch) -> list[tuple[Place, int]]:
    """How often a step passes each place."""
    triggers = [(place, Trigger()) for place in PLACES]
    with ExitStack() as stack:
        for place, trigger in triggers:
            stack.enter_context(place(learner, trigger))
        learner.step(batch)
    return [(place, trigger.calls) for place, trigger in triggers]


# --- what is alive ----------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Leave everything that exists already out of the many garbage collections."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def modules_of(learner: lp.Learner) -> tuple[nn.Module, ...]:
    return learner.model, learner.heads, learner.encoders


def list_held(learner: lp.Learner) -> list[Tensor]:
    """The tensors that live between steps, and those of all batches."""
    batches = [tensor for batch in BATCHES for tensor in batch]
    first = LossBatch.of(BATCHES[0])
    held = list_held_tensors(modules_of(learner), learner.optimizers, first)
    return [*held, learner.engine.plan.scalar, *batches]


def assert_nothing_left(learner: lp.Learner) -> None:
    """Neither gradients nor hooks."""
    with_gradient = [name for name, p in learner.named_parameters() if p.grad is not None]
    assert with_gradient == []
    assert [hook for module in modules_of(learner) for hook in hooks_of(module)] == []


def assert_same_next_step(learner: lp.Learner, fresh: lp.Learner, batch: Batch) -> None:
    """A step equals that of another learner in the same state, to the bit."""
    state = state_of(learner)
    assert state is not None
    restore(fresh, state)
    for loss, expected in zip(learner.step(batch), fresh.step(batch), strict=True):
        assert torch.equal(loss, expected)
    one, other = flatten(state_of(learner)), flatten(state_of(fresh))
    assert one.keys() == other.keys()
    assert [key for key, value in one.items() if not values_equal(value, other[key])] == []


def flatten(state: dict[str, Any] | None) -> dict[tuple[str, str], object]:
    """All entries of a state but the number of steps."""
    assert state is not None
    return {
        (component, name): value
        for component, values in state.items()
        if component != "steps"
        for name, value in values.items()
    }


@each_variant
@each_method
def test_a_failed_step_leaves_nothing_alive(method: Method, options: dict[str, Any]) -> None:
    """At the first and the last passage of each place, by an exception and by Ctrl-C.

    The next step equals that of a learner that never failed, at the same parameters.
    """
    learner, fresh = make_learner(method, options), make_learner(method, options)
    learner.step(BATCHES[0])  # makes the state of optimizers
    for place, last in count_calls(learner, BATCHES[1]):
        assert last > 0, place.__name__
        for call in dict.fromkeys([1, last]):
            for error in ERRORS:
                assert_failure_leaves_nothing(learner, place, Trigger(error, call))
            assert_same_next_step(learner, fresh, BATCHES[3])


def assert_failure_leaves_nothing(learner: lp.Learner, place: Place, trigger: Trigger) -> None:
    """Neither tensors, gradients and hooks, nor another random state or grad mode."""
    random, grad_mode = torch.get_rng_state(), trigger.error is KeyboardInterrupt
    with LiveBytes(list_held(learner)) as live, torch.set_grad_enabled(grad_mode):
        before = live.current
        fail(learner, BATCHES[2], place, trigger)
        assert torch.is_grad_enabled() is grad_mode
    gc.collect()
    assert live.current == before, f"{place.__name__}, call {trigger.call}"
    assert torch.equal(torch.get_rng_state(), random)
    assert not torch.is_autocast_enabled("cpu")
    assert_nothing_left(learner)


@each_variant
@each_method
def test_only_losses_live_after_a_step(method: Method, options: dict[str, Any]) -> None:
    """At once, without a garbage collection."""
    learner = make_learner(method, options)
    learner.step(BATCHES[0])
    gc.disable()
    try:
        with LiveBytes(list_held(learner)) as live:
            before = live.current
            losses = learner.step(BATCHES[1])
        storages = {loss.untyped_storage()._cdata: loss.untyped_storage() for loss in losses}
        assert live.current - before == sum(storage.nbytes() for storage in storages.values())
        assert all(loss.ndim == 0 and not loss.requires_grad for loss in losses)
        del losses, storages
        assert live.current == before
    finally:
        gc.enable()
    assert_nothing_left(learner)


@each_method
def test_a_failed_first_step_leaves_nothing_alive(method: Method) -> None:
    """Segments that run again compare their first outputs: those of a failed step are forgotten.

    Optimizers that have stepped keep their state. Each backward keeps one number, which means
    nothing.
    """
    learner, fresh = make_learner(method, RECOMPUTED), make_learner(method, RECOMPUTED)
    backwards = sum(action.op is Op.B for action in learner.schedule)
    with LiveBytes(list_held(learner)) as live:
        before = live.current
        fail(learner, BATCHES[0], fail_in_a_loss, Trigger(call=1))
    gc.collect()
    state = LiveBytes(list_held(learner)).current - before
    assert state <= live.current - before <= state + backwards * 4
    assert_nothing_left(learner)
    assert_same_next_step(learner, fresh, BATCHES[1])


@each_variant
@each_method
def test_the_store_of_a_step_is_empty_in_the_end(
    method: Method, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value has been taken by its last reader, whether parameters are stepped or not."""
    stores: list[Store] = []

    def make_step(*args: Any) -> StepContext:
        step = StepContext(*args)
        stores.append(step.store)
        return step

    monkeypatch.setattr(engine, "StepContext", make_step)
    learner = make_learner(method, options)
    learner.step(BATCHES[0])
    # A copy of what a step has changed needs the step.
    (learner.step if method is lp.solo else learner.backward)(BATCHES[1])
    assert [[*map(str, store)] for store in stores] == [[], []]
