"""Networks whose blocks `torch.compile` has compiled: the hooks of a step stay outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import localprop as lp
from localprop.errors import BadInput
from tests.helpers.predictions import make_batch, sgd

# Dynamo looks at `.grad` of the inputs of what it compiles, also where these are no leaves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0"),
]

RULES = {"greedy": lp.greedy(), "backlink": lp.backlink(), "contsup": lp.contsup()}


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def train(
    rule: lp.Rule, change: Callable[[nn.Module], object] = lambda model: None, **options: Any
) -> dict[str, torch.Tensor]:
    """The parameters after two steps of a network, changed before."""
    torch.manual_seed(0)
    model = lp.models.create_model("resnet14", 3, (3, 8, 8))
    change(model)
    before = [module._compiled_call_impl for module in model.modules()]
    batch = make_batch(3, 8, 8).data
    learner = lp.Learner(model, rule, sample=batch, optimizer=sgd, **{"modules": 4, **options})
    for _ in range(2):
        learner.step(batch)
    assert [module._compiled_call_impl for module in model.modules()] == before
    assert not any(module._forward_hooks for module in model.modules())
    return {name: p.detach() for name, p in learner.named_parameters()}


def compile_blocks(backend: str) -> Callable[[nn.Module], object]:
    """Compile each block as users do."""

    def change(model: Any) -> None:
        for block in model.blocks:
            block.compile(backend=backend)

    return change


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_blocks_are_compiled_without_hooks(rule: lp.Rule) -> None:
    """Five of the six blocks differ; equal ones share a graph. No hook breaks one.

    In greedy training the input of a module's first block needs no gradient, which makes a sixth.
    """
    plain = train(rule)
    compiled = train(rule, compile_blocks("eager"))
    assert all(torch.equal(compiled[name], p) for name, p in plain.items())
    assert counters["stats"]["unique_graphs"] == (6 if rule is RULES["greedy"] else 5)
    assert not counters["graph_break"]


def test_several_flows_run_through_a_compiled_backward() -> None:
    """AOTAutograd compiles a backward of its own, which backward links run more than once."""
    plain = train(lp.backlink())
    compiled = train(lp.backlink(), compile_blocks("aot_eager"))
    assert all(torch.allclose(compiled[name], p, atol=1e-6) for name, p in plain.items())


@pytest.mark.long
def test_inductor() -> None:
    plain = train(lp.backlink())
    compiled = train(lp.backlink(), compile_blocks("inductor"))
    assert all(torch.allclose(compiled[name], p, atol=1e-4) for name, p in plain.items())


def test_a_forward_that_is_compiled_may_run_again() -> None:
    def change(model: Any) -> None:
        for block in model.blocks:
            block.forward = torch.compile(block.forward, backend="eager")

    plain = train(lp.end_to_end(), recompute=True)
    compiled = train(lp.end_to_end(), change, recompute=True)
    assert all(torch.equal(compiled[name], p) for name, p in plain.items())


def test_what_hides_its_inside_is_refused() -> None:
    with pytest.raises(BadInput, match=r"The model was compiled as a whole.*compile smaller"):
        train(lp.greedy(), lambda model: model.compile(backend="eager"))
    with pytest.raises(BadInput, match=r"'blocks.0' was compiled as a whole.*'blocks.0.bn2'"):
        train(lp.trgl(), compile_blocks("eager"))
    with pytest.raises(BadInput, match="recompute cannot watch"):
        train(lp.greedy(), compile_blocks("eager"), recompute=True)


def test_a_whole_network_is_compiled_for_training_end_to_end() -> None:
    plain = train(lp.end_to_end(), modules=1)
    compiled = train(lp.end_to_end(), lambda model: model.compile(backend="eager"), modules=1)
    assert all(torch.equal(compiled[name], p) for name, p in plain.items())
