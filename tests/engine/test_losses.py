"""The losses of a step know where they stand."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import localprop as lp
from localprop.engine.loss import Losses, LossPlace
from tests.helpers.reference import network, sgd


def make(rule: lp.Rule, name: str = "mlp", **options: Any) -> lp.Learner:
    """A learner of four modules."""
    model, batches = network(name)
    return lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batches[0], **options)


def step(learner: lp.Learner, name: str = "mlp") -> Losses:
    return learner.step(network(name)[1][0])


def test_losses_know_their_places() -> None:
    """Module 0 has no loss of its own here, so that rows and positions differ."""
    losses = step(make(lp.interlocking(wise=2)))
    places = (
        LossPlace(row=1, module=1, layer=3, name="7"),
        LossPlace(row=2, module=2, layer=5, name="11"),
        LossPlace(row=3, module=3, layer=7, name="14"),
    )
    assert losses.places == places
    assert [place for place, _ in losses.items()] == [*places]
    assert all(one is two for (_, one), two in zip(losses.items(), losses, strict=True))
    assert losses.rows == losses.modules == (1, 2, 3)
    assert losses.task is losses[2]


def test_several_losses_of_a_module_differ_by_their_rows() -> None:
    learner = make(lp.hpff(), "resnet14", normalization=lp.Normalization())
    losses = step(learner, "resnet14")
    assert losses.rows == (0, 1, 2, 3, 4)
    assert losses.modules == learner.wiring.table.module_of_loss == (1, 1, 2, 2, 3)
    assert [place.name for place in losses.places] == [
        learner.partition.layers.names[place.layer] for place in losses.places
    ]
    assert [place.layer for place in losses.places] == [2, 2, 4, 4, 6]


def test_places_are_worked_out_once() -> None:
    learner = make(lp.greedy())
    first, second = step(learner), step(learner)
    assert all(one is two for one, two in zip(first.places, second.places, strict=True))


def test_losses_print_with_their_places() -> None:
    places = (LossPlace(0, 0, 1, "blocks.0"), LossPlace(1, 1, 3, "blocks.2"))
    losses = Losses.of({1: torch.tensor(0.25), 0: torch.tensor(2.3456789)}, places)
    assert repr(losses) == (
        "Losses(loss0 at layer 1 'blocks.0' (module 0): 2.346, "
        "loss1 at layer 3 'blocks.2' (module 1): 0.25)"
    )


def test_a_stage_has_its_own_losses_alone() -> None:
    places = (LossPlace(0, 0, 1, "blocks.0"), LossPlace(1, 1, 3, "blocks.2"))
    losses = Losses.of({0: torch.tensor(2.0)}, places)
    assert losses.places == places[:1]
    with pytest.raises(lp.BadInput, match="that of module 1, which another rank runs"):
        losses.task  # noqa: B018 - it raises


def test_copies_keep_the_places() -> None:
    losses = step(make(lp.greedy()))
    for copied in (copy.deepcopy(losses), pickle.loads(pickle.dumps(losses))):
        assert isinstance(copied, Losses)
        assert repr(copied) == repr(losses)
        assert copied.task.equal(losses.task)


@pytest.mark.parametrize("task", [lp.CrossEntropy(), lp.Terms((lp.Term(lp.CrossEntropy(), 2.0),))])
def test_parts_with_ignored_labels_weigh_once(task: Any) -> None:
    """A builder that is given as the task is weighted, and so are the losses that it makes."""
    inputs, targets = torch.randn(4, 6, 5), torch.randint(7, (4, 6))
    targets[0, 1:] = targets[1, 3:] = -100
    gradients = []
    for microbatches in (1, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 7))
        learner = lp.Learner(
            model,
            lp.greedy(),
            modules=2,
            optimizer=sgd,
            sample=(inputs, targets),
            task=task,
            microbatches=microbatches,
        )
        learner.backward((inputs, targets))
        gradients.append([parameter.grad for parameter in model.parameters()])
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, summed)
