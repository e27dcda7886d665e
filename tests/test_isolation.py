"""Each loss trains what its row of the credit table says, and nothing else; and values worked out by hand."""

from __future__ import annotations

import copy

import pytest
import reference
import torch
from reference import Twin, assert_same_state, network, sgd
from test_exact import ANY_NETWORK
from torch import Tensor, nn

import localprop as lp

# --- the table is what happens ----------------------------------------------------------------------------------------------


class Perturbed(lp.LocalLoss):
    """Another loss than the one inside: curved, so that the error's direction changes too."""

    def __init__(self, inside: lp.LocalLoss) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, features: Tensor, aux: nn.Module, seen: lp.Seen) -> Tensor:
        return 3 * self.inside(features, aux, seen) + 0.1 * features.square().mean()


def one_step(name: str, rule: lp.Rule, perturbed: int | None, *, recompute: bool = False, parts: int = 1) -> lp.Learner:
    model, batches = network(name)
    learner = lp.Learner(
        model,
        rule,
        modules=4,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
        sample=batches[0],
        recompute=recompute,
        microbatches=parts,
    )
    if perturbed is not None:
        head = learner.heads[str(perturbed)]
        head["loss"] = Perturbed(head["loss"])
    learner.step(batches[0])
    return learner


def moved(one: nn.Module, other: nn.Module) -> set[str]:
    pairs = zip(one.named_parameters(), other.parameters(), strict=True)
    return {name for (name, a), b in pairs if not torch.equal(a, b)}


RULES = [
    lp.greedy(),
    lp.backlink(layers=1),
    lp.backlink(layers=2, weight=0.5),
    lp.interlocking(wise=2),
    lp.interlocking(wise=3),
    lp.end_to_end(),
    lp.Rule(lp.Own(joined=1)),
]
WITH_CONTEXT = [
    lp.contsup(True, 2),
    lp.contsup(False, 1),
    lp.Rule(lp.BackwardLinks(layers=9), context=lp.ContextSupply(True, 2)),
    lp.Rule(lp.Interlocked(wise=2), context=lp.ContextSupply(previous=2)),
]
CASES = [("mlp", rule) for rule in RULES] + [("resnet14", rule) for rule in (*RULES, *WITH_CONTEXT)]


def short(value: str | lp.Rule) -> str:
    return value if isinstance(value, str) else f"{value.credit}{value.context.previous or ''}"


@pytest.mark.parametrize(("recompute", "parts"), [(False, 1), (True, 2)])
@pytest.mark.parametrize(
    ("name", "rule"), CASES, ids=lambda value: type(value.credit).__name__ if isinstance(value, lp.Rule) else value
)
def test_a_loss_moves_what_its_row_says(name: str, rule: lp.Rule, recompute: bool, parts: int) -> None:
    """A perturbed loss changes the update of every layer with a T in its row; the others stay bit-equal."""
    plain = one_step(name, rule, None, recompute=recompute, parts=parts)
    table, layers = plain.wiring.table, plain.partition.layers
    for k in table.losses:
        other = one_step(name, rule, k, recompute=recompute, parts=parts)
        trained = [layer for layer, entry in enumerate(table.rows[k]) if entry is not None and entry.train]
        expected = {parameter for layer in trained for parameter in layers.parameters[layer]}
        assert moved(plain.model, other.model) == expected
        assert {name.split(".")[0] for name in moved(plain.heads, other.heads)} <= {str(k)}
        receivers = {m for m in range(1, 4) if plain.partition.modules[m].start in trained and str(m) in plain.encoders}
        assert {int(name.split(".")[0]) for name in moved(plain.encoders, other.encoders)} == receivers


def test_a_step_uses_the_weights_from_before_it() -> None:
    """A module that steps early must not change what later modules see in the same step."""
    model, batches = network("resnet14")
    before = copy.deepcopy(model).train()
    learner = lp.Learner(
        model,
        lp.greedy(),
        modules=4,
        optimizer=lambda params: torch.optim.SGD(params, lr=10.0),
        sample=batches[0],
    )
    loss = learner.step(batches[0]).task
    expected = nn.functional.cross_entropy(before(batches[0][0]), batches[0][1])
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


# --- frozen layers ---------------------------------------------------------------------------------------------------------


def frozen(model: nn.Module, *parts: str) -> nn.Module:
    for part in parts:
        model.get_submodule(part).requires_grad_(False)
    return model


@pytest.mark.parametrize("rule", ["greedy", "backlink(1)", "interlocking(2)", "end_to_end"])
@pytest.mark.parametrize("parts", [("conv", "bn", "blocks.0"), ("blocks.2", "blocks.3"), ("blocks.1.conv1", "fc")])
def test_frozen_layers_stay_and_the_rest_trains(rule: str, parts: tuple[str, ...]) -> None:
    build, method, _ = ANY_NETWORK[rule]
    model, batches = network("resnet14")
    frozen(model, *parts)
    before = copy.deepcopy(model)
    learner = lp.Learner(model, build, modules=4, optimizer=sgd, sample=batches[0])
    twin = Twin.of(learner, reference.layers_of_cifar_resnet)
    reference.train(twin, method, batches)
    for batch in batches:
        learner.step(batch)
    assert_same_state(model, twin.model, 1e-10)
    for (_, a), b in zip(before.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b) != b.requires_grad


@pytest.mark.parametrize("recompute", [False, True])
def test_norms_in_eval_mode_keep_their_statistics(recompute: bool) -> None:
    """Fine-tuning as usual: the first blocks frozen, their BatchNorm in eval mode."""
    model, batches = network("resnet14")
    learner = lp.Learner(
        frozen(model, "blocks.0"), lp.backlink(), modules=4, optimizer=sgd, sample=batches[0], recompute=recompute
    )
    model.blocks[0].eval()
    statistics = copy.deepcopy(model.blocks[0].state_dict())
    twin = Twin.of(learner, reference.layers_of_cifar_resnet)
    reference.train(twin, reference.backlink(1), batches)
    for batch in batches:
        learner.step(batch)
    assert_same_state(model, twin.model, 1e-10)
    assert all(torch.equal(value, statistics[name]) for name, value in model.blocks[0].state_dict().items())
    assert not model.blocks[0].training


# --- by hand ----------------------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """A layer of one parameter: x -> w x. (The weight is a 1x1 matrix, since vectors make no layer of their own.)"""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[weight]], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Halved(lp.LocalLoss):
    """(a(h) - y)^2 / 2, whose error is a(h) - y."""

    def forward(self, features: Tensor, aux: nn.Module, seen: lp.Seen) -> Tensor:
        return ((aux(features) - seen.targets) ** 2 / 2).mean()


def halved(site: lp.Site) -> lp.LocalLoss:
    return Halved()


def aux(site: lp.Site) -> nn.Module:
    return Scale([1.0, 0.25][site.module])


# x = 1, y = 5, weights 2 3 | 1 2 | 1 1, heads 1 and 1/4:
#
#     h0 = 2*3 = 6,   h1 = 6*1*2 = 12,   h2 = 12*1*1 = 12
#     error of loss 0 at its head   1*6 - 5 = 1,      at h0   1*1 = 1
#     error of loss 1 at its head   12/4 - 5 = -2,    at h1   -2/4 = -1/2,    at h0   -1/2*2*1 = -1
#     error of loss 2               12 - 5 = 7,       at h1   7*1*1 = 7,      at h0   7*2*1 = 14
#
# dL_k/dw = error at the layer's end * what the layer scales; with the layers' inputs 1, 2 | 6, 6 | 12, 12:
#
#                w0       w1      w2         w3        w4       w5      head
#     dL0     1*3*1=3   1*2=2      0          0         0        0     1*6 = 6
#     dL1    -1*3*1=-3 -1*2=-2  -1/2*2*6=-6 -1/2*6=-3   0        0    -2*12 = -24
#     dL2    14*3*1=42 14*2=28   7*2*6=84    7*6=42   7*1*12=84 7*12=84
BY_HAND: dict[str, tuple[lp.Credit, list[float], dict[int, float]]] = {
    "greedy": (lp.Own(), [3, 2, -6, -3, 84, 84], {0: 6, 1: -24}),
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
    "interlocking(2)": (lp.Interlocked(2), [-3, -2, 84, 42, 84, 84], {1: -24}),
    "interlocking(3)": (lp.Interlocked(3), [42, 28, 84, 42, 84, 84], {}),
    "joined(1)": (lp.Own(joined=1), [3, 2, 84, 42, 84, 84], {0: 6}),
    "end_to_end": (lp.EndToEnd(), [42, 28, 84, 42, 84, 84], {}),
}


def scales() -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    weights = [2.0, 3.0, 1.0, 2.0, 1.0, 1.0]
    batch = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 5.0, dtype=torch.float64)
    return nn.Sequential(*map(Scale, weights)), batch


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", BY_HAND)
def test_by_hand(case: str, recompute: bool) -> None:
    credit, gradients, heads = BY_HAND[case]
    model, batch = scales()
    before = [layer.weight.item() for layer in model]
    learner = lp.Learner(
        model,
        lp.Rule(credit, aux=aux, loss=halved),
        modules=3,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
        sample=batch,
        task=halved,
        recompute=recompute,
    )
    losses = learner.backward(batch)
    assert dict(zip(losses.modules, map(float, losses), strict=True)) == {
        k: value for k, value in {0: 0.5, 1: 2.0, 2: 24.5}.items() if k in heads or k == 2
    }
    assert [layer.weight.grad.item() for layer in model] == gradients
    assert {int(k): head["aux"].weight.grad.item() for k, head in learner.heads.items() if k != "2"} == heads

    model.zero_grad()
    learner.heads.zero_grad()
    learner.step(batch)
    assert [layer.weight.item() for layer in model] == [w - 0.5 * g for w, g in zip(before, gradients, strict=True)]


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
        task=halved,
    )
    weights = []
    for _ in range(2):
        learner.step(batch)
        weights.append(model[0].weight.item())
    assert weights == [0.5, 0.0]
