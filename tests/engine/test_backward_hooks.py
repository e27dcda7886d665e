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


def watch(model: nn.Module) -> dict[str, list[Any]]:
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


class Odd(nn.Module):
    """A module that is called twice, and one whose residual is added outside of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(5, 5) for _ in range(3)])
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        twice, once, last = self.blocks
        x = twice(twice(x))
        x = 3 * once(x) + x
        output: Tensor = self.head(last(x))
        return output


@pytest.mark.parametrize("watched_first", [False, True])
def test_at_cuts_of_every_kind(watched_first: bool) -> None:
    plain, model = Odd(), Odd()
    expected = watch(plain.blocks)
    torch.autograd.backward(nn.functional.cross_entropy(plain(BATCH[0]), BATCH[1]))
    seen = watch(model.blocks) if watched_first else {}
    learner = lp.Learner(model, lp.end_to_end(), modules=4, optimizer=sgd, sample=BATCH)
    # torch's wrapping of an output is no module's: it can go around no cut.
    residual = "blocks.1+2" if watched_first else "blocks.1"
    names = ("blocks.0#1", "blocks.0#2", residual, "blocks.2")
    assert learner.partition.layers.names == names
    seen = seen if watched_first else watch(model.blocks)
    seen.clear()
    learner.backward(BATCH)
    assert {name: len(calls) for name, calls in seen.items()} == {"0": 2, "1": 1, "2": 1}
    for name, calls in seen.items():
        for one, other in zip(calls, expected[name], strict=True):
            assert all(a is b is None or a.equal(b) for a, b in zip(one, other, strict=True)), name
