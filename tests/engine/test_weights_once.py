"""Gradients of weights that are made once, of the sum of several flows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.cost.alive import check_values
from localprop.report.costs import measure_peak_bytes
from localprop.rule.table import Entry, T
from localprop.schedule.schedule import Op
from localprop.tasks.batch import Batch
from tests.helpers import reference
from tests.helpers.reference import (
    NETWORKS,
    Losses,
    Method,
    ReferenceModel,
    Term,
    assert_same_state,
    batches_of,
    network,
    sgd,
)

RULES = {
    "three sums": lp.interlocking(wise=3, combine="sum"),
    "windows of three": lp.windows(size=3),
    "links": lp.backlink(layers=2, weight=0.5),
}


def train_by_table(table: lp.CreditTable) -> Method:
    """A reference for any table: a term for each loss and layer that it trains."""

    def list_terms(model: ReferenceModel, loss: Losses) -> list[Term]:
        places = [(k, i) for k, layers in enumerate(model.modules) for i in range(len(layers))]
        return [
            Term(loss[number], model.layer(*place), entry.weight)
            for number, row in enumerate(table.rows)
            for place, entry in zip(places, row, strict=True)
            if entry is not None and entry.train
        ]

    return list_terms


def train(
    rule: lp.Rule, name: str = "mlp", modules: int = 4, **options: Any
) -> tuple[lp.Learner, reference.Batches]:
    """A learner before its first step, and the batches to train it on."""
    model, batches = network(name)
    return lp.Learner(
        model, rule, modules=modules, optimizer=sgd, sample=batches[0], **options
    ), batches


@pytest.mark.parametrize(
    ("name", "options"),
    [("mlp", {"microbatches": 3}), ("resnet8", {}), ("resnet8", {"recompute": True})],
)
@pytest.mark.parametrize("rule", RULES)
def test_the_sum_trains_as_the_reference(rule: str, name: str, options: dict[str, Any]) -> None:
    learner, batches = train(RULES[rule], name, **options)
    assert any(action.op is Op.W for action in learner.schedule)
    expected = ReferenceModel.of(learner, NETWORKS[name][1])
    method = train_by_table(learner.wiring.table)
    reference.train(expected, method, batches, microbatches=options.get("microbatches", 1))
    for batch in batches:
        learner.step(batch)
    assert_same_state(learner.model, expected.model, 1e-10)


@pytest.mark.parametrize(
    "rule",
    [
        lp.Rule(lp.WindowCredit(), penalty=lp.KineticPenalty(plain=True)),  # inner outputs
        lp.Rule(lp.BackwardLinks(), context=lp.ContextSupply(True, 1)),
    ],
    ids=["inner outputs", "contexts"],
)
def test_once_is_each_but_for_rounding(rule: lp.Rule) -> None:
    ways = []
    for weight_gradients in ("once", "each"):
        learner, batches = train(rule, "resnet8", weight_gradients=weight_gradients)
        for batch in batches[:2]:
            learner.step(batch)
        ways.append(learner)
    once, each = ways
    assert once.wiring.weights_once
    assert not each.wiring.weights_once
    assert_same_state(once.network, each.network, 1e-12)
    assert once.flops() < each.flops()


@pytest.mark.parametrize("rule", RULES)
def test_only_what_is_planned_is_alive(rule: str) -> None:
    learner, batches = train(RULES[rule], microbatches=2)
    learner.step(batches[0])  # optimizer state exists from here on
    check_values(learner.engine, Batch.of(batches[1]))


def test_a_hook_sees_the_sum() -> None:
    """Of a parameter that two flows train, and whose gradient it clips."""
    seen = []
    for weight_gradients in ("once", "each"):
        learner, batches = train(lp.backlink(), weight_gradients=weight_gradients)
        segment = next(s for s, flows in enumerate(learner.wiring.flows) if len(flows) == 2)
        parameter = learner.model.get_parameter(learner.wiring.segments[segment].parameters[0])
        gradients: list[Tensor] = []
        parameter.register_hook(gradients.append)  # type: ignore[no-untyped-call]
        learner.backward(batches[0])
        seen.append(gradients)
        assert parameter.grad is not None
    (total,), parts = seen
    assert len(parts) == 2
    torch.testing.assert_close(total, sum(parts), rtol=0, atol=1e-14)


def test_a_way_that_does_not_exist_is_refused() -> None:
    with pytest.raises(lp.BadInput, match="weight_gradients='twice' must be 'once'"):
        train(lp.backlink(), weight_gradients="twice")


# --- gradients that are kept ------------------------------------------------------------------


class Shift(nn.Module):
    """Hands its gradient on as a view without one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((1, 4), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1) + self.shift


class Last(nn.Linear):
    """A classifier of what `Shift` returns."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.squeeze(1))


# Loss 1 weighs half in module 0, so its gradient is scaled in place on the way.
HALVED = lp.CreditTable((1, 1, 1), ((T, None, None), (Entry(True, 0.5), T, None), (None, T, T)))


def test_a_kept_gradient_shares_no_memory_with_what_goes_on() -> None:
    found = []
    for weight_gradients in ("once", "each"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), Shift(), Last(4, 3)).double()
        (batch, *_) = batches_of((4,), 3)
        learner = lp.Learner(
            model,
            lp.Rule(lambda _: HALVED, aux=lp.Head(convs=0, linears=1)),
            modules=3,
            optimizer=sgd,
            sample=batch,
            weight_gradients=weight_gradients,
        )
        learner.step(batch)
        found.append(model)
    once, each = found
    assert_same_state(once, each, 1e-14)


class _Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].mul_(2)


class Doubled(nn.Linear):
    """Its backward writes into the gradient that it is given, which torch forbids."""

    def forward(self, input: Tensor) -> Tensor:
        doubled: Tensor = _Doubles.apply(super().forward(input))
        return doubled


def test_a_backward_that_overwrites_a_kept_gradient_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(Doubled(6, 6) for _ in range(8)))
    batch = torch.randn(4, 6), torch.arange(4)

    def make(weight_gradients: str) -> lp.Learner:
        return lp.Learner(
            model,
            lp.backlink(),
            modules=4,
            optimizer=sgd,
            sample=batch,
            weight_gradients=weight_gradients,
        )

    with pytest.raises(lp.BadInput, match='return a new tensor, or give weight_gradients="each"'):
        make("once").step(batch)
    make("each").step(batch)


@pytest.mark.parametrize("rule", ["three sums", "links"])
def test_the_peak_is_predicted(rule: str) -> None:
    learner, (batch, *_) = train(RULES[rule], "resnet14", modules=5)
    predicted = learner.memory(batch).peak_bytes
    learner.step(batch)
    assert measure_peak_bytes(learner, Batch.of(batch)) == predicted
