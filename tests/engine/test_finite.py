"""NaN and infinity are found before a parameter changes, and named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from tests.engine.test_undo import IMAGES, assert_equal, make

BAD = [torch.nan, torch.inf, -torch.inf]
RULES = {
    "greedy": lp.greedy(),
    "backlink": lp.backlink(layers=1),
    "end to end": lp.end_to_end(),
}


class Poisoned(nn.Module):
    """Gives its gradient one bad number, unless that is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bad = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.bad != 0:
            x.register_hook(self.poison)  # type: ignore[no-untyped-call]
        return x * 1

    def poison(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[0] = self.bad
        return gradient


BATCH = torch.ones(2, 4), torch.tensor([0, 1])


def make_poisoned(**options: Any) -> tuple[lp.Learner, Poisoned]:
    torch.manual_seed(0)
    poisoned = Poisoned()
    model = nn.Sequential(nn.Linear(4, 4), poisoned, nn.Linear(4, 4), nn.Linear(4, 3))
    learner = lp.Learner(
        model,
        lp.greedy(lp.Head(convs=0, linears=1)),
        modules=3,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        sample=BATCH,
        **options,
    )
    return learner, poisoned


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_loss_that_is_not_finite_is_named_and_nothing_changes(rule: lp.Rule, bad: float) -> None:
    learner, undisturbed = make(rule), make(rule)
    learner.step(IMAGES[0])
    undisturbed.step(IMAGES[0])
    images, targets = IMAGES[1]
    images = images.clone()
    images[0, 0, 0, 0] = bad
    with pytest.raises(lp.NotFinite) as caught:
        learner.step((images, targets))
    first = learner.engine.wiring.objectives[0]
    place = learner.step(IMAGES[1]).places[0]
    assert f"Step 1 was not taken: {place} is nan (action {first.segment}L)" in str(caught.value)
    assert str(caught.value.action) == f"{first.segment}L"
    undisturbed.step(IMAGES[1])
    assert_equal(learner, undisturbed)


@pytest.mark.parametrize("bad", BAD)
def test_a_gradient_that_is_not_finite_is_named(bad: float) -> None:
    learner, poisoned = make_poisoned()
    before = [p.detach().clone() for p in learner.parameters()]
    poisoned.bad = bad
    with pytest.raises(lp.NotFinite) as caught:
        learner.step(BATCH)
    assert "in the gradients of 0.weight (module 0, action 0B)" in str(caught.value)
    assert str(caught.value.action) == "0B"
    assert all(map(torch.equal, before, learner.parameters()))
    poisoned.bad = 0.0
    learner.step(BATCH)


def test_skipped_batches_have_never_come_and_are_counted() -> None:
    learner, poisoned = make_poisoned(on_nonfinite="skip")
    undisturbed, _ = make_poisoned()
    for _ in range(2):
        learner.step(BATCH)
        undisturbed.step(BATCH)
        poisoned.bad = torch.nan
        assert len(learner.step(BATCH)) == 3
        poisoned.bad = 0.0
    assert_equal(learner, undisturbed)
    assert (learner.skipped, learner.steps) == (2, 2)


def test_ignored_numbers_are_stepped() -> None:
    learner, poisoned = make_poisoned(on_nonfinite="ignore")
    poisoned.bad = torch.nan
    learner.step(BATCH)
    assert not all(p.isfinite().all() for p in learner.parameters())


def test_without_atomic_steps_each_looks_at_its_own() -> None:
    learner, poisoned = make_poisoned(atomic=False)
    before = [p.detach().clone() for p in learner.parameters()]
    poisoned.bad = torch.nan
    with pytest.raises(lp.NotFinite, match=r"0\.weight"):
        learner.step(BATCH)
    own = len([*learner.model[0].parameters()])  # type: ignore[index]
    assert all(map(torch.equal, before[:own], learner.parameters()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_nonfinite": "warn"}, "on_nonfinite='warn' must be one of raise, skip, ignore"),
        ({"atomic": "yes"}, "atomic='yes' must be True or False"),
        ({"on_nonfinite": "skip", "atomic": False}, "must be atomic"),
    ],
)
def test_what_to_do_about_failures_is_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(lp.BadInput, match=words):
        make(lp.greedy(), **options)


def test_gradients_of_every_kind_are_looked_at() -> None:
    """Sparse ones, complex ones, and those that autograd has expanded."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 4, sparse=True)
            self.phases = nn.Parameter(torch.ones(4, dtype=torch.complex64))
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.linear((self.words(x) * self.phases).real.mean(1))
            return output

    def step(scale: float) -> lp.Learner:
        torch.manual_seed(0)
        model, batch = Mixed(), (torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 1]))
        learner = lp.Learner(
            model,
            lp.end_to_end(),
            modules=1,
            optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
            sample=batch,
        )
        model.phases.data.mul_(scale)
        learner.step(batch)
        return learner

    step(1.0)
    with pytest.raises(lp.NotFinite, match=r"words\.weight"):
        step(torch.inf)
