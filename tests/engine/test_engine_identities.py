"""What must be equal without any reference: rules that coincide, and a model that stays plain."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from tests.helpers.reference import NETWORKS, Batches, assert_moved, assert_same_state, network, sgd
from tests.helpers.training import RULES, hooks_of, train

# --- rules that coincide ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "resnet14"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lp.interlocking(wise=1), lp.greedy()),
        (lp.interlocking(wise=4), lp.end_to_end()),
        (lp.interlocking(wise=9), lp.end_to_end()),
        (lp.backlink(layers=0), lp.greedy()),
        # A module of the four has two layers at most.
        (lp.backlink(layers=9), lp.backlink(layers=2)),
        (lp.Rule(lp.LocalCredit(joined=3)), lp.end_to_end()),
    ],
)
def test_rules_that_coincide(name: str, one: lp.Rule, other: lp.Rule) -> None:
    a, b = train(one, name), train(other, name)
    assert_same_state(a.model, b.model)
    assert_same_state(a.heads, b.heads)


@pytest.mark.parametrize(
    ("one", "other"),
    [(lp.backlink(layers=1), lp.greedy()), (lp.interlocking(2), lp.interlocking(3))],
)
def test_rules_that_differ(one: lp.Rule, other: lp.Rule) -> None:
    """The tests above can fail."""
    with pytest.raises(AssertionError):
        assert_same_state(train(one).model, train(other).model)


def test_context_without_sources_is_greedy() -> None:
    assert_same_state(train(lp.contsup(False, 0)).network, train(lp.greedy()).model)


def run_plain_loop(model: nn.Module, batches: Batches) -> None:
    """The loop of any PyTorch tutorial."""
    optimizer = sgd(model.parameters())
    for images, targets in batches:
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(images), targets))
        optimizer.step()


@pytest.mark.parametrize("name", ["mlp", "resnet14", "timm_vit"])
@pytest.mark.parametrize("rule", ["greedy", "backlink", "interlocking", "end_to_end"])
def test_one_module_is_the_plain_loop(name: str, rule: str) -> None:
    model, batches = network(name)
    run_plain_loop(model, batches)
    assert_same_state(train(RULES[rule], name, modules=1).model, model)


def test_one_module_with_context_is_the_plain_loop() -> None:
    model, batches = network("resnet14")
    run_plain_loop(model, batches)
    assert_same_state(train(RULES["contsup"], modules=1).network, model)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("recompute", [False, True])
def test_end_to_end_is_the_plain_loop(name: str, recompute: bool) -> None:
    model, batches = network(name)
    before = copy.deepcopy(model)
    run_plain_loop(model, batches)
    assert_moved(before, model)
    learner = train(RULES["end_to_end"], name, recompute=recompute)
    assert_same_state(learner.model, model, tolerance=1e-12)


# --- the model stays the plain model ----------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_trained_model_is_the_plain_model(rule: str) -> None:
    learner = train(RULES[rule], recompute=rule == "backlink")
    fresh, batches = network("resnet14")
    assert list(learner.model.state_dict()) == list(fresh.state_dict())
    fresh.load_state_dict(learner.model.state_dict(), strict=True)
    assert hooks_of(learner.model) == []
    images = batches[0][0]
    assert torch.equal(learner.model.eval()(images), fresh.eval()(images))
    assert all(parameter.grad is None for parameter in learner.parameters())
    if rule not in ("contsup", "combined"):
        assert learner.network is learner.model


@pytest.mark.parametrize("rule", RULES)
def test_a_copy_is_inert(rule: str) -> None:
    """A forward of a deep copy (an average of weights) trains neither it nor the original."""
    learner = train(RULES[rule])
    images, targets = network("resnet14")[1][0]
    before, copied = copy.deepcopy(learner.model.state_dict()), copy.deepcopy(learner.model)
    torch.autograd.backward(functional.cross_entropy(copied(images), targets))
    assert all(parameter.grad is not None for parameter in copied.parameters())
    assert all(parameter.grad is None for parameter in learner.parameters())
    after = learner.model.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


# --- loops that others own --------------------------------------------------------------------


@pytest.fixture(params=["greedy", "backlink", "interlocking", "end_to_end"])
def rule(request: pytest.FixtureRequest) -> lp.Rule:
    return RULES[str(request.param)]


def test_gradients_for_a_loop_that_others_own(rule: lp.Rule) -> None:
    """learner.backward and one optimizer over everything do what learner.step does."""
    model, batches = network("mlp")
    learner = lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batches[0])
    optimizer = sgd(learner.parameters())
    losses: list[Tensor] = []

    def record_and_differentiate(loss: Tensor) -> None:
        losses.append(loss)
        torch.autograd.backward(loss)

    for batch in batches:
        learner.backward(batch, backward=record_and_differentiate)
        optimizer.step()
        optimizer.zero_grad()
    assert len(losses) == 3 * len(learner.wiring.objectives)
    assert_same_state(model, train(rule, "mlp").model)


def test_an_optimizer_that_exists_steps_once(rule: lp.Rule) -> None:
    model, batches = network("mlp")
    optimizer = sgd(model.parameters())
    learner = lp.Learner(model, rule, modules=4, optimizer=optimizer, sample=batches[0])
    for batch in batches:
        learner.step(batch)
    expected = train(rule, "mlp")
    assert_same_state(model, expected.model)
    assert_same_state(learner.heads, expected.heads)
