"""Parameters that no layer uses are not trained, whoever owns them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import localprop as lp
from tests.helpers.reference import sgd
from tests.helpers.tied import NETWORKS, build_chain


class Unused(nn.Module):
    """A chain with parameters that no layer uses."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = build_chain()
        self.spare = nn.Parameter(torch.ones(3).double())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.chain(x)
        return logits


@pytest.mark.parametrize("optimizer", ["factory", "of all", "of the used ones"])
def test_parameters_that_no_layer_uses_are_not_stepped(optimizer: str) -> None:
    model, batches = Unused(), NETWORKS["chain"].batches()
    given: dict[str, Any] = {
        "factory": sgd,
        "of all": sgd(list(model.parameters())),
        "of the used ones": sgd(list(model.chain.parameters())),
    }
    made = given[optimizer]
    learner = lp.Learner(model, lp.greedy(), modules=3, optimizer=made, sample=batches[0])
    learner.step(batches[0])
    state = learner.state_dict()
    assert state is not None
    learner.load_state_dict(state)
    learner.step(batches[1])
    assert torch.equal(model.spare, torch.ones(3).double())
    owned = [p for o in learner.optimizers for group in o.param_groups for p in group["params"]]
    assert any(p is model.spare for p in owned) == (optimizer != "of the used ones")


def test_an_optimizer_must_own_what_is_trained() -> None:
    model = build_chain()
    optimizer: Optimizer = sgd([p for name, p in model.named_parameters() if name != "2.bias"])
    with pytest.raises(lp.BadInput, match=r"lacks parameters of the model \(2\.bias\)"):
        lp.Learner(
            model,
            lp.greedy(),
            modules=3,
            optimizer=optimizer,
            sample=NETWORKS["chain"].batches()[0],
        )
