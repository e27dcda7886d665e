"""Early exits: the features of a module through its trained head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import localprop as lp
from localprop.engine.early_exit import list_exits
from tests.helpers.layers import cut_once
from tests.helpers.reference import network, sgd
from tests.helpers.training import hooks_of, train


def test_a_batch_that_the_network_does_not_run_on_is_refused() -> None:
    torch.manual_seed(0)
    sample = (torch.rand(4, 3, 8, 8), torch.arange(4))
    learner = lp.Learner(lp.models.resnet8(), lp.greedy(), modules=2, optimizer=sgd, sample=sample)
    for module in (None, 0):
        with pytest.raises(lp.BadInput, match="network does not run on a batch"):
            learner.predict(sample[0].double(), module=module)


@pytest.mark.parametrize("recompute", [False, True])
def test_an_exit_is_the_head_on_the_features_of_its_module(recompute: bool) -> None:
    learner = train(lp.greedy(), recompute=recompute)
    _, batches = network("resnet14")
    images = batches[0][0]
    for module in range(3):
        name = learner.partition.layers.names[learner.partition.modules[module][-1]]
        kept: list[Tensor] = []
        learner.model.eval()
        end = learner.model.get_submodule(name)
        handle = end.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output))
        with torch.no_grad():
            learner.model(images)
            expected = learner.heads[str(module)].eval()["aux"](kept[0])  # type: ignore[index]
        handle.remove()
        learner.model.train()
        learner.heads.train()
        assert torch.equal(learner.predict(images, module=module), expected)
    assert torch.equal(learner.predict(images, module=3), learner.predict(images))
    assert learner.model.training
    assert learner.heads.training
    assert hooks_of(learner.model) == []


def test_contexts_count_up_to_the_module() -> None:
    """An exit sees the contexts of its own module, and not those of the next."""
    learner = train(lp.contsup())
    _, batches = network("resnet14")
    images = batches[0][0]

    def outputs() -> list[Tensor]:
        return [learner.predict(images, module=module) for module in range(4)]

    before = outputs()
    with torch.no_grad():
        for parameter in learner.encoders["2"].parameters():
            parameter.add_(1)
    changed = [not torch.equal(a, b) for a, b in zip(before, outputs(), strict=True)]
    assert changed == [False, False, True, True]


def test_modules_without_a_head_are_no_exits() -> None:
    model, batches = network("resnet14")
    learner = lp.Learner(
        model,
        lp.interlocking(wise=2),
        partition=cut_once(model, batches[0], 4),
        optimizer=sgd,
        sample=batches[0],
    )
    assert list_exits(learner.wiring) == [1, 2, 3]
    for module in (0, 4, -1):
        with pytest.raises(lp.BadInput, match=f"module={module}: .* left at modules 1, 2, 3"):
            learner.predict(batches[0], module=module)
    assert list_exits(train(lp.end_to_end()).wiring) == [3]
