"""Operations of actions, counted by hand."""

from __future__ import annotations

import torch
from torch import nn

import localprop as lp
from localprop.cost.flops import count_flops_by_action
from localprop.tasks.batch import Batch


def test_operations_of_each_action() -> None:
    """Two linear layers, 4 to 5 to 3, at batch 2; a product of (n, k) and (k, m) has 2 n k m."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    batch = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    sgd = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    learner = lp.Learner(model, lp.end_to_end(), modules=2, optimizer=sgd, sample=batch)
    flops = count_flops_by_action(learner.engine, [], Batch.of(batch))
    first, second = 2 * 2 * 4 * 5, 2 * 2 * 5 * 3
    assert {str(action): count for action, count in flops.items() if count} == {
        "0F": first,
        "1F": second,
        "1B": 2 * second,  # gradients of weights and of the input
        "0B": first,  # the images need no gradient
    }
    assert sum(flops.values()) == learner.flops()


def test_they_add_up_with_heads_and_weights_made_once() -> None:
    batch = (torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))
    sgd = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    rule = lp.backlink(layers=2)
    learner = lp.Learner(lp.models.resnet8(), rule, modules=4, optimizer=sgd, sample=batch)
    flops = count_flops_by_action(learner.engine, [], Batch.of(batch))
    assert [*flops] == [*learner.schedule]
    assert sum(flops.values()) == learner.flops()
