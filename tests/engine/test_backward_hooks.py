"""Users' full backward hooks fire, and see and change what they do in a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from tests.helpers.reference import sgd

# The first layer's input requires no gradient.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
BATCH = torch.randn(6, 5), torch.randint(3, (6,))


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))


def watch(model: nn.Sequential) -> dict[str, list[Any]]:
    """Note the gradients at each module's outputs and inputs, and double the latter."""
    seen: dict[str, list[Any]] = {}
    for name, module in model.named_children():

        def note(module: nn.Module, inputs: Any, outputs: Any, name: str = name) -> Any:
            seen.setdefault(name, []).append((inputs[0], outputs[0]))
            return None if inputs[0] is None else (2 * inputs[0],)

        module.register_full_backward_hook(note)
    return seen


@pytest.mark.parametrize("recompute", [False, True])
def test_end_to_end_they_see_what_a_plain_loop_shows(recompute: bool) -> None:
    plain, model = build(), build()
    expected, seen = watch(plain), watch(model)
    torch.autograd.backward(nn.functional.cross_entropy(plain(BATCH[0]), BATCH[1]))
    learner = lp.Learner(
        model, lp.end_to_end(), modules=4, optimizer=sgd, sample=BATCH, recompute=recompute
    )
    seen.clear()
    learner.backward(BATCH)
    assert seen.keys() == expected.keys()
    for name, calls in seen.items():
        for one, other in zip(calls, expected[name], strict=True):
            assert all(a is b is None or a.equal(b) for a, b in zip(one, other, strict=True)), name
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert isinstance(one.grad, Tensor)
        assert isinstance(other.grad, Tensor)
        assert one.grad.equal(other.grad)


def test_they_fire_once_for_each_local_loss_and_are_given_back() -> None:
    model = build()
    seen = watch(model)
    hooks = [module._backward_hooks for module in model]
    learner = lp.Learner(model, lp.greedy(), modules=4, optimizer=sgd, sample=BATCH)
    seen.clear()
    learner.step(BATCH)
    assert {name: len(calls) for name, calls in seen.items()} == dict.fromkeys("0123", 1)
    assert all(m._backward_hooks is own for m, own in zip(model, hooks, strict=True))
