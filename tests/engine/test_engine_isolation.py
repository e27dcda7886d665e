"""Each loss trains what its row of the credit table says and nothing else; values by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.rule.credit import Credit
from tests.helpers import reference
from tests.helpers.layers import cut_once
from tests.helpers.reference import (
    ANY_NETWORK,
    ReferenceModel,
    assert_same_state,
    aux_of,
    network,
    sgd,
)

# --- the table is what happens ----------------------------------------------------------------


class Perturbed(lp.LocalLoss):
    """Another loss than the one inside: curved, so that the gradient's direction changes too."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, features: Tensor, aux: nn.Module, inputs: lp.LossInputs) -> Tensor:
        loss: Tensor = self.inside(features, aux, inputs)
        return 3 * loss + 0.1 * features.square().mean()


def plain_sgd(lr: float) -> Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def step_once(
    name: str, rule: lp.Rule, perturbed: int | None, *, recompute: bool, microbatches: int
) -> lp.Learner:
    """A learner after one step, in which one of the losses may be perturbed."""
    model, batches = network(name)
    learner = lp.Learner(
        model,
        rule,
        partition=cut_once(model, batches[0], 4),
        optimizer=plain_sgd(0.5),
        sample=batches[0],
        recompute=recompute,
        microbatches=microbatches,
    )
    if perturbed is not None:
        head = learner.heads.get_submodule(str(perturbed))
        head.register_module("loss", Perturbed(head.get_submodule("loss")))
    learner.step(batches[0])
    return learner


def find_moved(one: nn.Module, other: nn.Module) -> set[str]:
    """The names of the parameters that differ."""
    pairs = zip(one.named_parameters(), other.parameters(), strict=True)
    return {name for (name, a), b in pairs if not torch.equal(a, b)}


RULES = [
    lp.greedy(),
    lp.backlink(layers=1),
    lp.backlink(layers=2, weight=0.5),
    lp.interlocking(wise=2),
    lp.interlocking(wise=3),
    lp.end_to_end(),
    lp.Rule(lp.LocalCredit(joined=1)),
]
WITH_CONTEXT = [
    lp.contsup(True, 2),
    lp.contsup(False, 1),
    lp.Rule(lp.BackwardLinks(layers=9), context=lp.ContextSupply(True, 2)),
    lp.Rule(lp.InterlockingCredit(wise=2), context=lp.ContextSupply(previous=2)),
]
CASES = [("mlp", rule) for rule in RULES] + [("resnet14", rule) for rule in (*RULES, *WITH_CONTEXT)]


@pytest.mark.parametrize(("recompute", "microbatches"), [(False, 1), (True, 2)])
@pytest.mark.parametrize(
    ("name", "rule"),
    CASES,
    ids=lambda value: type(value.credit).__name__ if isinstance(value, lp.Rule) else value,
)
def test_a_loss_moves_what_its_row_says(
    name: str, rule: lp.Rule, recompute: bool, microbatches: int
) -> None:
    """A perturbed loss changes the update of every layer with a T in its row, and no other bit."""
    plain = step_once(name, rule, None, recompute=recompute, microbatches=microbatches)
    table = plain.wiring.table
    for k in table.losses:
        other = step_once(name, rule, k, recompute=recompute, microbatches=microbatches)
        trained = [layer for layer, entry in enumerate(table.rows[k]) if entry and entry.train]
        assert_only_layers_moved(plain, other, trained)
        assert {name.split(".")[0] for name in find_moved(plain.heads, other.heads)} <= {str(k)}


def assert_only_layers_moved(plain: lp.Learner, other: lp.Learner, trained: list[int]) -> None:
    """Exactly these layers differ, and the encoders of the modules that begin with one of them."""
    parameters = plain.partition.layers.parameters
    expected = {parameter for layer in trained for parameter in parameters[layer]}
    assert find_moved(plain.model, other.model) == expected
    receivers = {
        m
        for m in range(1, 4)
        if plain.partition.modules[m].start in trained and str(m) in plain.encoders
    }
    moved_encoders = find_moved(plain.encoders, other.encoders)
    assert {int(name.split(".")[0]) for name in moved_encoders} == receivers


def test_a_step_uses_the_weights_from_before_it() -> None:
    """A module that steps early must not change what later modules receive in the same step."""
    model, batches = network("resnet14")
    before = copy.deepcopy(model).train()
    learner = lp.Learner(
        model, lp.greedy(), modules=4, optimizer=plain_sgd(10.0), sample=batches[0]
    )
    loss = learner.step(batches[0]).task
    expected = nn.functional.cross_entropy(before(batches[0][0]), batches[0][1])
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


# --- frozen layers ----------------------------------------------------------------------------


def freeze(model: nn.Module, *paths: str) -> nn.Module:
    for path in paths:
        model.get_submodule(path).requires_grad_(False)
    return model


@pytest.mark.parametrize("rule", ["greedy", "backlink(1)", "interlocking(2)", "end_to_end"])
@pytest.mark.parametrize(
    "paths", [("conv", "bn", "blocks.0"), ("blocks.2", "blocks.3"), ("blocks.1.conv1", "fc")]
)
def test_frozen_layers_stay_and_the_rest_trains(rule: str, paths: tuple[str, ...]) -> None:
    case = ANY_NETWORK[rule]
    model, batches = network("resnet14")
    freeze(model, *paths)
    before = copy.deepcopy(model)
    partition = cut_once(model, batches[0], 4)
    learner = lp.Learner(model, case.rule, partition=partition, optimizer=sgd, sample=batches[0])
    expected = ReferenceModel.of(learner, reference.layers_of_cifar_resnet)
    reference.train(expected, case.method, batches)
    for batch in batches:
        learner.step(batch)
    assert_same_state(model, expected.model, 1e-10)
    for a, b in zip(before.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b) != b.requires_grad


@pytest.mark.parametrize("recompute", [False, True])
def test_norms_in_eval_mode_keep_their_statistics(recompute: bool) -> None:
    """Fine-tuning as usual: the first blocks frozen, their BatchNorm in eval mode."""
    model, batches = network("resnet14")
    learner = lp.Learner(
        freeze(model, "blocks.0"),
        lp.backlink(),
        modules=4,
        optimizer=sgd,
        sample=batches[0],
        recompute=recompute,
    )
    block = model.get_submodule("blocks.0").eval()
    statistics = copy.deepcopy(block.state_dict())
    expected = ReferenceModel.of(learner, reference.layers_of_cifar_resnet)
    reference.train(expected, reference.backlink(1), batches)
    for batch in batches:
        learner.step(batch)
    assert_same_state(model, expected.model, 1e-10)
    assert all(torch.equal(value, statistics[name]) for name, value in block.state_dict().items())
    assert not block.training


# --- by hand ----------------------------------------------------------------------------------


class Scale(nn.Module):
    """A layer with one parameter: x -> w x. The weight is a 1x1 matrix: vectors form no layer."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[weight]], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class HalfSquare(lp.LocalLoss):
    """(a(h) - y)^2 / 2, whose gradient with respect to a(h) is a(h) - y."""

    def forward(self, features: Tensor, aux: nn.Module, inputs: lp.LossInputs) -> Tensor:
        output: Tensor = aux(features)
        return ((output - inputs.targets) ** 2 / 2).mean()


def half_square(point: lp.AttachPoint) -> lp.LocalLoss:
    return HalfSquare()


def scaling_head(point: lp.AttachPoint) -> nn.Module:
    return Scale([1.0, 0.25][point.module])


# x = 1, y = 5, weights 2 3 | 1 2 | 1 1, heads 1 and 1/4:
#
#     h0 = 2*3 = 6,   h1 = 6*1*2 = 12,   h2 = 12*1*1 = 12
#     gradient of loss 0 at its head  1*6 - 5 = 1,      at h0   1*1 = 1
#     gradient of loss 1 at its head  12/4 - 5 = -2,    at h1   -2/4 = -1/2,   at h0   -1/2*2*1 = -1
#     gradient of loss 2              12 - 5 = 7,       at h1   7*1*1 = 7,     at h0   7*2*1 = 14
#
# dL_k/dw = gradient at the layer's end * the layer's input; the inputs are 1, 2 | 6, 6 | 12, 12:
#
#                w0       w1      w2         w3        w4       w5      head
#     dL0     1*3*1=3   1*2=2      0          0         0        0     1*6 = 6
#     dL1    -1*3*1=-3 -1*2=-2  -1/2*2*6=-6 -1/2*6=-3   0        0    -2*12 = -24
#     dL2    14*3*1=42 14*2=28   7*2*6=84    7*6=42   7*1*12=84 7*12=84
BY_HAND: dict[str, tuple[Credit, list[float], dict[int, float]]] = {
    "greedy": (lp.LocalCredit(), [3, 2, -6, -3, 84, 84], {0: 6, 1: -24}),
    "backlink(1, 0.5)": (
        lp.BackwardLinks(1, 0.5),
        [3, 2 - 1, -6, -3 + 21, 84, 84],
        {0: 6, 1: -24},
    ),
    "backlink(2, 0.5)": (
        lp.BackwardLinks(2, 0.5),
        [3 - 1.5, 2 - 1, -6 + 42, -3 + 21, 84, 84],
        {0: 6, 1: -24},
    ),
    "interlocking(2)": (lp.InterlockingCredit(2), [-3, -2, 84, 42, 84, 84], {1: -24}),
    "interlocking(3)": (lp.InterlockingCredit(3), [42, 28, 84, 42, 84, 84], {}),
    "joined(1)": (lp.LocalCredit(joined=1), [3, 2, 84, 42, 84, 84], {0: 6}),
    "end_to_end": (lp.EndToEndCredit(), [42, 28, 84, 42, 84, 84], {}),
}


def list_weights(model: nn.Module) -> list[float]:
    return [parameter.item() for parameter in model.parameters()]


def list_gradients(model: nn.Module) -> list[float]:
    gradients = [parameter.grad for parameter in model.parameters()]
    return [gradient.item() for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", BY_HAND)
def test_by_hand(case: str, recompute: bool) -> None:
    credit, gradients, head_gradients = BY_HAND[case]
    model = nn.Sequential(*map(Scale, [2.0, 3.0, 1.0, 2.0, 1.0, 1.0]))
    batch = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 5.0, dtype=torch.float64)
    before = list_weights(model)
    learner = lp.Learner(
        model,
        lp.Rule(credit, aux=scaling_head, loss=half_square),
        modules=3,
        optimizer=plain_sgd(0.5),
        sample=batch,
        task=half_square,
        recompute=recompute,
    )
    losses = learner.backward(batch)
    expected_losses = {0: 0.5, 1: 2.0, 2: 24.5}
    assert dict(zip(losses.modules, map(float, losses), strict=True)) == {
        k: value for k, value in expected_losses.items() if k in head_gradients or k == 2
    }
    assert list_gradients(model) == gradients
    heads = [int(k) for k in learner.heads if k != "2"]
    assert {k: list_gradients(aux_of(learner, k)) for k in heads} == {
        k: [gradient] for k, gradient in head_gradients.items()
    }

    model.zero_grad()
    learner.heads.zero_grad()
    learner.step(batch)
    assert list_weights(model) == [w - 0.5 * g for w, g in zip(before, gradients, strict=True)]


def test_momentum_by_hand() -> None:
    """Greedy, one layer, x = 1, y = 0, w = 1: two steps of lr 1/2 with momentum 1/2.

    Step 1: g = 1, v = 1, w = 1/2. Step 2: g = 1/2, v = 1/2 + 1/2 = 1, w = 0.
    """
    model = nn.Sequential(Scale(1.0))
    batch = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    learner = lp.Learner(
        model,
        lp.greedy(),
        modules=1,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5, momentum=0.5),
        sample=batch,
        task=half_square,
    )
    weights = []
    for _ in range(2):
        learner.step(batch)
        weights += list_weights(model)
    assert weights == [0.5, 0.0]
