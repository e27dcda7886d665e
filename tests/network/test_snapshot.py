"""Layers that were replaced, frozen, moved or cast after a learner was made are noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import localprop as lp
from localprop.network.snapshot import Snapshot
from tests.helpers.reference import sgd

BATCH = (torch.rand(4, 3, 8, 8), torch.arange(4))


def make_model() -> Any:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    block = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    return nn.Sequential(block, nn.Sequential(conv, nn.ReLU()), nn.Flatten(), nn.Linear(256, 4))


def replace_layer(model: Any) -> None:
    model[3] = nn.Linear(256, 4)


def replace_nonlinearity(model: Any) -> None:
    model[1][1] = nn.GELU()


def replace_parameter(model: Any) -> None:
    model[3].weight = nn.Parameter(torch.zeros(4, 256))


def add_layer(model: Any) -> None:
    model[1].append(nn.ReLU())


def remove_layer(model: Any) -> None:
    del model[1][1]


def freeze(model: Any) -> None:
    model[3].bias.requires_grad_(False)


def cast(model: Any) -> None:
    model[3].double()


def move(model: Any) -> None:
    model[3].to("meta")  # to an accelerator the parameter would stay the same object


CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (replace_layer, "'3' was replaced"),
    (replace_nonlinearity, "'1.1' was replaced"),
    (replace_parameter, "'3.weight' was replaced"),
    (add_layer, "'1.2' was replaced, added or removed"),
    (remove_layer, "'1.1' was replaced, added or removed"),
    (freeze, "requires_grad of '3.bias' has changed"),
    (cast, "dtype of '3.weight', '3.bias' has changed"),
    (move, "'3.weight', '3.bias' was replaced"),
]


@pytest.mark.parametrize(
    ("change", "words"), CHANGES, ids=lambda each: getattr(each, "__name__", "")
)
def test_a_change_is_noticed_at_the_next_step(change: Callable[[Any], None], words: str) -> None:
    model = make_model()
    learner = lp.Learner(model, lp.greedy(), modules=3, optimizer=sgd, sample=BATCH)
    learner.step(BATCH)
    change(model)
    for step in (learner.step, learner.backward):
        with pytest.raises(lp.BadInput) as caught:
            step(BATCH)
        assert words in str(caught.value)
        assert "learner.rebuild()" in str(caught.value)


def test_a_replaced_layer_trains_after_rebuild() -> None:
    model = make_model()
    learner = lp.Learner(model, lp.greedy(), modules=3, optimizer=sgd, sample=BATCH)
    replace_layer(model)
    before = model[3].weight.clone()
    learner.rebuild()
    learner.step(BATCH)
    assert not torch.equal(model[3].weight, before)


def test_a_frozen_head_is_noticed() -> None:
    model = make_model()
    learner = lp.Learner(model, lp.greedy(), modules=3, optimizer=sgd, sample=BATCH)
    learner.heads["0"]["aux"].requires_grad_(False)  # type: ignore[index]
    with pytest.raises(lp.BadInput, match=r"requires_grad of 'heads\.0\.aux\..* has changed"):
        learner.step(BATCH)


def test_what_loops_do_to_values_is_no_change() -> None:
    """A restored state, averages swapped in, another memory format, hooks, other modes."""
    model = make_model()
    snapshot = Snapshot({"": model})
    model.load_state_dict(make_model().state_dict())
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
        parameter.grad = torch.zeros_like(parameter)
    model.to(memory_format=torch.channels_last)
    model.eval()
    model[0].register_forward_hook(lambda *_: None)
    assert list(snapshot.find_changes()) == []
