"""Factories of optimizers, with names and without."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import localprop as lp
from localprop.engine.user_optimizers import takes_names
from tests.helpers.reference import assert_same_state, network


def make(optimizer: Any, rule: lp.Rule | None = None) -> lp.Learner:
    model, batches = network("resnet8")
    learner = lp.Learner(
        model, rule or lp.contsup(), modules=3, optimizer=optimizer, sample=batches[0]
    )
    for batch in batches:
        learner.step(batch)
    return learner


def test_a_factory_gets_names_if_its_argument_is_called_so() -> None:
    """Each pair is one of the learner's, and all of them come once."""
    given: list[tuple[str, nn.Parameter]] = []

    def factory(named_parameters: list[tuple[str, nn.Parameter]]) -> Optimizer:
        given.extend(named_parameters)
        return SGD([p for _, p in named_parameters], lr=0.1)

    learner = make(factory)
    assert {name: id(p) for name, p in given} == {n: id(p) for n, p in learner.named_parameters()}
    assert len(given) == len(list(learner.named_parameters()))


def test_names_choose_rates_by_module_and_decay_by_kind() -> None:
    def is_early(name: str) -> bool:
        return name.startswith(("conv", "bn", "blocks.0", "encoders.1"))

    def factory(named: list[tuple[str, nn.Parameter]]) -> Optimizer:
        groups = [
            {
                "params": [p for n, p in named if is_early(n) is early and (p.ndim > 1) is decays],
                "lr": 0.01 if early else 0.1,
                "weight_decay": 0.01 if decays else 0.0,
            }
            for early in (True, False)
            for decays in (True, False)
        ]
        return AdamW(groups)

    learner = make(factory)
    state = learner.state_dict()
    assert state is not None
    learner.load_state_dict(state)
    for group in learner.optimizer_groups():
        for name, parameter in group.parameters.items():
            assert group.options["lr"] == (0.01 if is_early(name) else 0.1)
            assert group.options["weight_decay"] == (0.01 if parameter.ndim > 1 else 0.0)
    assert "AdamW 2 (lr=0.1, " in "\n".join(map(str, learner.optimizer_groups()))


@pytest.mark.parametrize(
    ("factory", "named"),
    [
        (lambda named: SGD(named), True),
        (lambda params: SGD(params), False),
        (partial(SGD, lr=0.1), False),
        (AdamW, False),
    ],
)
def test_the_name_of_the_argument_decides(factory: Any, named: bool) -> None:
    assert takes_names(factory) is named


@pytest.mark.parametrize("option", ["fused", "foreach"])
@pytest.mark.parametrize("existing", [False, True])
def test_fused_and_foreach_optimizers(option: str, existing: bool) -> None:
    """The same as a loop over the parameters, up to rounding."""
    trained = []
    choices: list[dict[str, Any]] = [{option: True}, {"foreach": False}]
    for options in choices:
        model, batches = network("resnet8")
        factory: Any = partial(SGD, lr=0.1, momentum=0.9, **options)
        optimizer = factory(model.parameters()) if existing else factory
        learner = lp.Learner(model, lp.greedy(), modules=3, optimizer=optimizer, sample=batches[0])
        learner.memory()  # on fakes
        learner.step(batches[0])
        trained.append(learner)
    assert_same_state(trained[0].model, trained[1].model, tolerance=1e-12)
    assert_same_state(trained[0].heads, trained[1].heads, tolerance=1e-12)


class EightBit(Optimizer):
    """As 8-bit optimizers do: momentum in whole numbers with a scale."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                momentum = p.grad.clone()
                if state:
                    momentum += 0.9 * state["momentum"].to(p.dtype) * state["scale"]
                state["scale"] = momentum.abs().max() / 127 + 1e-12
                state["momentum"] = (momentum / state["scale"]).round().to(torch.int8)
                p.sub_(state["momentum"].to(p.dtype) * state["scale"], alpha=group["lr"])


@pytest.mark.parametrize("existing", [False, True])
def test_state_of_whole_numbers(existing: bool) -> None:
    """An 8-bit optimizer can be predicted, stepped and resumed to the bit."""
    model, batches = network("resnet8")
    optimizer: Any = partial(EightBit, lr=0.1)
    if existing:
        optimizer = optimizer(model.parameters())
    learner = lp.Learner(model, lp.greedy(), modules=3, optimizer=optimizer, sample=batches[0])
    learner.step(batches[0])
    before = learner.state_dict()
    assert before is not None
    assert learner.memory().peak_bytes > 0
    first = learner.step(batches[1])
    learner.step(batches[0])
    second = learner.step(batches[1])
    learner.load_state_dict(before)
    assert all(map(torch.equal, first, learner.step(batches[1])))
    learner.step(batches[0])
    assert all(map(torch.equal, second, learner.step(batches[1])))


class ReadsValues(SGD):
    """As optimizers do that have tensors or decisions of their own."""

    def step(self, closure: Any = None) -> Any:
        norms = {float(p.detach().norm()) for group in self.param_groups for p in group["params"]}
        return super().step(closure) if max(norms) < 1e6 else None


@pytest.mark.parametrize("existing", [False, True])
def test_an_optimizer_that_reads_values_trains_and_is_not_predicted(existing: bool) -> None:
    model, batches = network("resnet8")
    optimizer: Any = partial(ReadsValues, lr=0.1)
    if existing:
        optimizer = optimizer(model.parameters())
    learner = lp.Learner(model, lp.greedy(), modules=3, optimizer=optimizer, sample=batches[0])
    learner.step(batches[0])
    with pytest.raises(lp.BadInput, match="A prediction runs on tensors without values"):
        learner.memory()
    learner.step(batches[1])
