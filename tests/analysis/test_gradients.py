"""Cosines of local with end-to-end gradients: by plain autograd, and where they must be 1."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from tests.helpers.reference import sgd
from tests.helpers.training import RULES, train

BATCH = (torch.randn(9, 4, generator=torch.Generator().manual_seed(3)), torch.arange(9) % 3)


def make_learner(rule: lp.Rule, *, dropout: float = 0.0, **options: object) -> lp.Learner:
    """Three modules of two layers each, whose weights are in layers 0, 1, ..., 5."""
    torch.manual_seed(0)
    layers = []
    for number in range(6):
        outputs = 3 if number == 5 else 4
        layers.append(nn.Sequential(nn.Linear(4, outputs), nn.Tanh(), nn.Dropout(dropout)))
    model = nn.Sequential(*layers)
    return lp.Learner(model, rule, modules=3, optimizer=sgd, sample=BATCH, **options)  # type: ignore[arg-type]


def find_plainly(learner: lp.Learner, reach: int) -> list[float]:
    """The cosines of six layers where each loss trains its module and `reach` layers before."""
    images, labels = BATCH
    model = learner.model
    assert isinstance(model, nn.Sequential)
    features, losses = images, []
    for number, layer in enumerate(model):
        features = layer(features)
        if number in (1, 3):
            aux = learner.heads[str(number // 2)]["aux"]  # type: ignore[index]
            losses.append(functional.cross_entropy(aux(features), labels))
    losses.append(functional.cross_entropy(features, labels))
    cosines = []
    for number, layer in enumerate(model):
        mine = [*layer.parameters()]
        whole = torch.autograd.grad(losses[-1], mine, retain_graph=True)
        local = [torch.zeros_like(p) for p in mine]
        for module, loss in enumerate(losses):
            if 2 * module - reach <= number <= 2 * module + 1:
                found = torch.autograd.grad(loss, mine, retain_graph=True)
                local = [a + b for a, b in zip(local, found, strict=True)]
        a, b = (torch.cat([g.flatten() for g in each]).double() for each in (local, whole))
        cosines.append(float(a @ b / (a.norm() * b.norm())))
    return cosines


@pytest.mark.parametrize(("rule", "reach"), [(lp.greedy(), 0), (lp.backlink(layers=1), 1)])
def test_by_plain_autograd(rule: lp.Rule, reach: int) -> None:
    learner = make_learner(rule)
    found = lp.analysis.compare_gradients(learner, BATCH)
    assert found.modules == (0, 0, 1, 1, 2, 2)
    expected = find_plainly(learner, reach)
    assert found.cosines == pytest.approx(expected, abs=1e-6)
    assert expected[0] < 0.9


@pytest.mark.parametrize("options", [{}, {"microbatches": 3}, {"precision": "bf16"}])
@pytest.mark.parametrize("rule", [lp.end_to_end(), lp.interlocking(wise=3)], ids=["e2e", "full"])
def test_end_to_end_is_itself(rule: lp.Rule, options: dict[str, object]) -> None:
    """Also with dropout: both draw the same."""
    found = lp.analysis.compare_gradients(make_learner(rule, dropout=0.4, **options), BATCH)
    assert found.cosines == (1.0,) * 6


def test_both_draw_the_same_where_segments_are_no_modules() -> None:
    """The last module of BackLink gets the last loss alone, as end to end: the same gradient."""
    learner = make_learner(lp.backlink(layers=1), dropout=0.4)
    assert len(learner.wiring.segments) == 5
    learner.step(BATCH)
    found = lp.analysis.compare_gradients(learner, BATCH)
    assert found.cosines[-2:] == (1.0, 1.0)
    assert found.cosines[0] != 1.0


@pytest.mark.parametrize("name", RULES)
def test_every_rule(name: str) -> None:
    """Each on a residual network: the last loss alone trains the last module."""
    learner = train(RULES[name])
    batch = (torch.randn(8, 3, 8, 8).double(), torch.arange(8) % 10)
    found = lp.analysis.compare_gradients(learner, batch)
    assert found.cosines[-1] == 1.0
    assert all(each is not None and -1 <= each <= 1 for each in found.cosines)
    if name == "greedy":
        assert found.cosines[0] is not None
        assert abs(found.cosines[0]) < 0.9


def test_frozen_layers_have_no_cosine() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
    model[0].requires_grad_(False)
    learner = lp.Learner(model, lp.greedy(), modules=3, optimizer=sgd, sample=BATCH)
    found = lp.analysis.compare_gradients(learner, BATCH)
    assert [each is None for each in found.cosines] == [True, False, False]
    assert "–" in str(found)


def test_an_optimizer_of_the_users_keeps_its_groups() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
    optimizer = torch.optim.AdamW(model.parameters())
    learner = lp.Learner(model, lp.greedy(), modules=3, optimizer=optimizer, sample=BATCH)
    learner.step(BATCH)

    def read() -> tuple[object, ...]:
        groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        return groups, str(optimizer.state_dict()), len(optimizer.state)

    before = read()
    lp.analysis.compare_gradients(learner, BATCH)
    assert read() == before
    assert math.isfinite(float(learner.step(BATCH)[0]))


def test_what_has_no_gradients_to_compare_is_refused() -> None:
    with pytest.raises(lp.BadInput, match="precision='bf16' or 'fp32'"):
        lp.analysis.compare_gradients(make_learner(lp.greedy(), precision="fp16"), BATCH)
    wrong: tuple[Tensor, Tensor] = (BATCH[0], torch.full((9,), 7))
    with pytest.raises(lp.BadInput, match="7"):
        lp.analysis.compare_gradients(make_learner(lp.greedy()), wrong)
