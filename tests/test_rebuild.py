"""A learner looks at its model again, after layers were frozen, unfrozen, moved or replaced."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import localprop as lp

torch.manual_seed(0)
BATCH = (torch.randn(16, 3, 8, 8), torch.randint(10, (16,)))


def make_learner(shared: bool, rule: lp.Rule | None = None) -> lp.Learner:
    torch.manual_seed(1)
    model = lp.models.resnet8()

    def factory(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    optimizer = factory(list(model.parameters())) if shared else factory
    learner = lp.Learner(model, rule or lp.backlink(), modules=4, optimizer=optimizer, sample=BATCH)
    for _ in range(2):
        learner.step(BATCH)
    return learner


def momentum_of(learner: lp.Learner) -> dict[str, Tensor]:
    """The momentum of each parameter, by name."""
    names = {id(p): name for name, p in learner.named_parameters()}
    return {
        names[id(parameter)]: state["momentum_buffer"].clone()
        for optimizer in learner.optimizers
        for parameter, state in optimizer.state.items()
        if state.get("momentum_buffer") is not None
    }


both = pytest.mark.parametrize("shared", [False, True], ids=["factory", "existing optimizer"])


@both
@pytest.mark.parametrize("rule", [lp.backlink(), lp.contsup(), lp.auglocal(depth=2)])
def test_without_a_change_the_next_step_is_the_same(shared: bool, rule: lp.Rule) -> None:
    plain, rebuilt = make_learner(shared, rule), make_learner(shared, rule)
    rebuilt.rebuild()
    for _ in range(2):
        for one, other in zip(plain.step(BATCH), rebuilt.step(BATCH), strict=True):
            assert torch.equal(one, other)


@both
def test_frozen_layers_stay_and_go_on_later(shared: bool) -> None:
    learner = make_learner(shared)
    stem = list(learner.model.conv.parameters())  # type: ignore[union-attr]
    for parameter in stem:
        parameter.requires_grad_(False)
    with pytest.raises(lp.BadInput, match=r"learner\.rebuild\(\)"):
        learner.step(BATCH)
    before = momentum_of(learner)
    learner.rebuild()
    after = momentum_of(learner)
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert before.keys() - after.keys() <= {"conv.weight"}
    kept = [parameter.clone() for parameter in stem]
    learner.step(BATCH)
    assert all(torch.equal(a, b) for a, b in zip(kept, stem, strict=True))
    for parameter in stem:
        parameter.requires_grad_(True)
    learner.rebuild()
    learner.step(BATCH)
    assert not any(torch.equal(a, b) for a, b in zip(kept, stem, strict=True))


@both
def test_a_replaced_layer_is_trained_and_the_rest_keeps_its_state(shared: bool) -> None:
    learner = make_learner(shared)
    before, steps = momentum_of(learner), learner.steps
    head = nn.Linear(learner.model.fc.in_features, 7)  # type: ignore[union-attr, arg-type]
    learner.model.fc = head
    learner.rebuild()
    after = momentum_of(learner)
    assert "fc.weight" not in after  # of another shape
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert learner.steps == steps
    weight = head.weight.clone()
    learner.step((BATCH[0], BATCH[1] % 7))
    assert not torch.equal(head.weight, weight)
    learner.state_dict()  # every parameter of an optimizer has a name


@both
def test_learning_rates_that_a_scheduler_has_left_stay(shared: bool) -> None:
    learner = make_learner(shared)
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.003
    learner.rebuild()
    rates = {group["lr"] for optimizer in learner.optimizers for group in optimizer.param_groups}
    # The group of heads, which an existing optimizer gains, takes its policy from the state, too.
    assert rates == {0.003}


def test_other_cuts() -> None:
    learner = make_learner(shared=False)
    learner.rebuild(modules=2)
    assert len(learner.step(BATCH)) == 2


def test_a_refusal_changes_nothing() -> None:
    learner = make_learner(shared=True)
    twin = copy.deepcopy(learner.state_dict())
    optimizer = learner.optimizers[0]
    owned = [list(map(id, group["params"])) for group in optimizer.param_groups]
    learner.model.fc = nn.Sequential(nn.Linear(64, 10), nn.Linear(10, 10))  # names are new
    with pytest.raises(lp.BadInput, match=r"lacks parameters of the model \(fc\.0\.weight"):
        learner.rebuild()
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == owned
    assert twin is not None
    assert learner.steps == twin["steps"]


def test_state_dict_goes_on_to_the_bit() -> None:
    learner = make_learner(shared=False)
    state = learner.state_dict()
    assert state is not None
    first = learner.step(BATCH)
    learner.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(first, learner.step(BATCH), strict=True))
