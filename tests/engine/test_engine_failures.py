"""A step that fails or is interrupted: what it says, and what it leaves behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.schedule.schedule import Action
from tests.helpers.reference import assert_moved, assert_same_state, aux_of, network, sgd
from tests.helpers.training import hooks_of


class Unreliable(nn.Module):
    """Fails when `calls` reaches zero. A second run sets back what a module holds, but no class."""

    calls = -1

    def forward(self, x: Tensor) -> Tensor:
        Unreliable.calls -= 1
        if Unreliable.calls == 0:
            raise ArithmeticError("no forward today")
        return x.sin().sin().sin()


@pytest.mark.parametrize(
    ("where", "recompute", "call"),
    [
        ("layer", False, 1),
        ("head", False, 1),
        ("layer", True, 1),
        ("layer", True, 2),  # the second call is the recompute
    ],
)
def test_a_failed_step_leaves_nothing_behind(
    where: str, recompute: bool, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = network("mlp")
    assert isinstance(model, nn.Sequential)
    unreliable = Unreliable()
    if where == "layer":
        model.insert(7, unreliable)
    learner = lp.Learner(
        model, lp.backlink(), modules=4, optimizer=sgd, sample=batches[0], recompute=recompute
    )
    if where == "head":
        head = aux_of(learner, 2)
        assert isinstance(head, nn.Sequential)
        head.append(unreliable)
    learner.step(batches[0])

    monkeypatch.setattr(Unreliable, "calls", call)
    random, last = torch.get_rng_state(), copy.deepcopy(model[-1])
    with torch.no_grad():
        with pytest.raises(lp.StepFailed, match="no forward today") as caught:
            learner.step(batches[1])
        assert not torch.is_grad_enabled()
    assert "<-- here" in str(caught.value)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert hooks_of(model) == []
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert_same_state(last, model[-1])  # the last layer comes after the failure
    learner.step(batches[2])
    assert not torch.equal(last.get_parameter("weight"), model[-1].get_parameter("weight"))


class Fragile(nn.Linear):
    """Fails while it is broken."""

    broken = False

    def forward(self, x: Tensor) -> Tensor:
        if self.broken:
            raise ValueError("the cable came out")
        return super().forward(x)


@pytest.mark.parametrize(
    ("atomic", "left"), [(True, "All is as before the step"), (False, "stepped already: 0")]
)
def test_a_failed_step_says_where(atomic: bool, left: str) -> None:
    fragile = Fragile(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), fragile, nn.Linear(4, 2))
    batch = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    learner = lp.Learner(model, lp.greedy(), modules=3, optimizer=sgd, sample=batch, atomic=atomic)
    fragile.broken = True
    with pytest.raises(lp.StepFailed) as failed:
        learner.step(batch)
    expected = (
        "Action 1F failed",
        "the cable came out",
        "module 1",
        "1F <-- here",
        left,
    )
    assert [words for words in expected if words not in str(failed.value)] == []
    fragile.broken = False
    learner.step(batch)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_step_leaves_no_gradients(error: type[BaseException]) -> None:
    """After Ctrl-C in a notebook, the next step added to the gradients that were left.

    After a failed first step, recompute compared the next batch with the failed one.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, targets = torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 10
    learner = lp.Learner(
        lp.models.resnet8(),
        lp.backlink(),
        modules=4,
        optimizer=sgd,
        sample=(images, targets),
        recompute=True,
    )

    def interrupt(action: Action) -> None:
        if str(action) == "1L":
            raise error

    with pytest.raises((error, lp.StepFailed)):
        learner.step((images, targets), observe=interrupt)
    assert all(parameter.grad is None for parameter in learner.parameters())
    learner.step((images + 1, targets))


def test_a_step_under_no_grad_trains() -> None:
    model, batches = network("mlp")
    learner = lp.Learner(model, lp.backlink(), modules=4, optimizer=sgd, sample=batches[0])
    before = copy.deepcopy(model)
    with torch.no_grad():
        learner.step(batches[0])
        assert not torch.is_grad_enabled()
    assert_moved(before, model)
