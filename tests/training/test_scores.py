"""Accuracy and cross-entropy of predictions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from localprop.data import Images
from localprop.errors import RunFailed
from localprop.network.modes import evaluation_mode
from localprop.training.build import prepare
from localprop.training.config import Config
from localprop.training.scores import evaluate, score_test_split

SMALL = Config(model="resnet8", modules=2, epochs=4, limit=200)


def test_a_network_whose_loss_is_not_finite_has_failed() -> None:
    dataset, learner = prepare(replace(SMALL, epochs=2))
    with torch.no_grad():
        [*learner.model.parameters()][-1].fill_(math.nan)
    with pytest.raises(RunFailed, match="loss is nan on the test split: lower lr"):
        score_test_split(learner, dataset, SMALL)


def test_the_loss_is_a_mean_over_labels() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    batches = [(logits, torch.tensor([0, 0])), (logits[1:], torch.tensor([1]))]
    score = evaluate(nn.Identity(), batches)
    assert score.loss == pytest.approx((math.log(2) + math.log(4 / 3) + math.log(4)) / 3)
    tokens = [(logits[None], torch.tensor([[0, 1]]))]
    assert evaluate(nn.Identity(), tokens) == pytest.approx((0.5, (math.log(2) + math.log(4)) / 2))


def test_evaluation_counts_and_restores_modes() -> None:
    norm, identity = nn.BatchNorm1d(3), nn.Identity()
    network = nn.Sequential(nn.Dropout(0.9), norm, identity)
    identity.eval()
    network.train()
    norm.eval()
    images = torch.eye(3)
    assert norm.running_mean is not None
    statistics = norm.running_mean.clone()
    batches = [(images, torch.tensor([0, 1, 0])), (images[:1], torch.tensor([0]))]
    with evaluation_mode(network):
        assert evaluate(network, batches).accuracy == 0.75
    assert [module.training for module in network.modules()] == [True, True, False, True]
    assert torch.equal(norm.running_mean, statistics)
    assert evaluate(network, []) == (0, 0)


def test_modes_are_restored_after_a_failure() -> None:
    network = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), evaluation_mode(network):
        evaluate(network, [(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))])
    assert network.training


def test_evaluate_keeps_no_graph() -> None:
    class Probe(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return inputs

    evaluate(Probe(), [(torch.eye(2), torch.tensor([0, 1]))])


def test_the_test_score_is_that_of_the_test_split() -> None:
    dataset, learner = prepare(SMALL)
    assert isinstance(dataset, Images)
    always_3 = nn.Linear(64, 10)
    nn.init.zeros_(always_3.weight)
    with torch.no_grad():
        always_3.bias.copy_(torch.eye(10)[3])
    learner.network = nn.Sequential(nn.Flatten(), always_3)
    fraction = (dataset.test.labels == 3).double().mean().item()
    score = score_test_split(learner, dataset, SMALL)
    assert score.accuracy == pytest.approx(fraction)
