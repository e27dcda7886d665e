"""Random state: dropout draws the same when recomputed, and anew in each step and layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from tests.helpers.reference import assert_same_state, network, sgd
from tests.helpers.training import RULES


def dropout_mlp() -> nn.Sequential:
    """An MLP with dropout between its layers and at its start."""
    hidden: list[nn.Module] = []
    for _ in range(7):
        hidden += [nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.3)]
    return nn.Sequential(nn.Dropout(0.2), *hidden, nn.Linear(6, 3)).double()


def train_with_dropout(
    rule: lp.Rule, seed: int = 0, *, recompute: bool = False, microbatches: int = 1
) -> lp.Learner:
    torch.manual_seed(5)
    model, batches = dropout_mlp(), network("mlp")[1]
    learner = lp.Learner(
        model,
        rule,
        modules=4,
        optimizer=sgd,
        sample=batches[0],
        seed=seed,
        recompute=recompute,
        microbatches=microbatches,
    )
    for i, batch in enumerate(batches):
        torch.manual_seed(100 + i + seed)  # what the caller draws must not matter
        learner.step(batch)
    return learner


@pytest.fixture(params=["greedy", "backlink", "interlocking", "end_to_end"])
def rule(request: pytest.FixtureRequest) -> lp.Rule:
    return RULES[str(request.param)]


@pytest.mark.parametrize("microbatches", [1, 3])
def test_dropout_draws_the_same_when_recomputed(rule: lp.Rule, microbatches: int) -> None:
    stored = train_with_dropout(rule, microbatches=microbatches)
    recomputed = train_with_dropout(rule, recompute=True, microbatches=microbatches)
    assert_same_state(stored.model, recomputed.model)


def test_the_same_seed_gives_the_same_bits(rule: lp.Rule) -> None:
    one, two = train_with_dropout(rule), train_with_dropout(rule)
    other = train_with_dropout(rule, seed=1)
    assert_same_state(one.model, two.model)
    assert_same_state(one.heads, two.heads)
    with pytest.raises(AssertionError):
        assert_same_state(one.model, other.model)


def test_dropout_differs_between_steps_and_layers() -> None:
    """A seed for each position, not one for all: no two masks of two steps are equal."""
    torch.manual_seed(0)
    masks: list[Tensor] = []

    def record_mask(module: nn.Module, args: object, output: Tensor) -> None:
        masks.append(output == 0)

    layers: list[nn.Module] = []
    for _ in range(4):
        dropout = nn.Dropout(0.5)
        dropout.register_forward_hook(record_mask)
        layers += [nn.Linear(9, 9), dropout]
    model = nn.Sequential(*layers, nn.Linear(9, 3))
    batch = (torch.randn(8, 9), torch.randint(3, (8,)))
    learner = lp.Learner(model, lp.greedy(), modules=4, optimizer=sgd, sample=batch)
    masks.clear()
    learner.step(batch)
    learner.step(batch)
    assert len(masks) == 8
    assert not any(torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


@pytest.mark.parametrize("recompute", [False, True])
def test_the_callers_random_state_is_left_alone(rule: lp.Rule, recompute: bool) -> None:
    batches = network("mlp")[1]
    model = dropout_mlp()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    learner = lp.Learner(
        model, rule, modules=4, optimizer=sgd, sample=batches[0], recompute=recompute
    )
    assert torch.equal(before, torch.get_rng_state())
    learner.step(batches[0])
    assert torch.equal(before, torch.get_rng_state())
    learner.backward(batches[0])
    assert torch.equal(before, torch.get_rng_state())
