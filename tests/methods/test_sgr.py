"""SGR: gradients that agree, against one connected graph in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop import GradientReconciliation
from tests.helpers.connected import Connected, Losses
from tests.helpers.connected_losses import AddPenalty, compare_penalty
from tests.helpers.reference import aux_of, batches_of, network, sgd


def reconcile(weight: float, *, cosine: bool = False) -> AddPenalty:
    """Add the distance of the two gradients at each cut, sample by sample."""

    def measure(g_in: Tensor, g_out: Tensor) -> Tensor:
        if cosine:
            similarity: Tensor = g_in @ g_out / (g_in.norm() * g_out.norm())
            return 1 - similarity
        return ((g_in - g_out) ** 2).sum()

    def add_penalty(connected: Connected, losses: Losses) -> Losses:
        penalized = {0: losses[0]}
        for k in range(1, len(losses)):
            cut = connected.outputs[k]
            (before,) = torch.autograd.grad(losses[k - 1], cut, retain_graph=True)
            (after,) = torch.autograd.grad(losses[k], cut, create_graph=True)
            # A loss is a mean: times the number of samples its gradients are those of a sample.
            distances = [
                measure(len(cut) * g_in.flatten(), len(cut) * g_out.flatten())
                for g_in, g_out in zip(after, before, strict=True)
            ]
            penalized[k] = losses[k] + weight * torch.stack(distances).mean()
        return penalized

    return add_penalty


@pytest.mark.parametrize("name", ["mlp", "resnet14"])
@pytest.mark.parametrize("parts", [1, 3])
def test_reconciled_gradients(name: str, parts: int) -> None:
    compare_penalty(name, GradientReconciliation(weight=0.3), reconcile(0.3), parts=parts)


def test_reconciled_gradients_by_their_angle() -> None:
    penalty = GradientReconciliation(0.5, distance="cosine")
    compare_penalty("resnet14", penalty, reconcile(0.5, cosine=True), modules=3)


def train_with(penalty: lp.NoPenalty | GradientReconciliation) -> float:
    """The squared distance of the two gradients at the cut, after 100 steps on one batch."""
    torch.manual_seed(0)
    model = lp.models.mlp(6, (16, 16, 16), 3).double()
    assert isinstance(model, nn.Sequential)
    ((images, targets),) = batches_of((6,), 3, size=32, count=1)
    learner = lp.Learner(
        model,
        lp.Rule(aux=lp.Head(convs=0, linears=1), penalty=penalty),
        modules=2,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05),
        sample=(images, targets),
    )
    for _ in range(100):
        learner.step((images, targets))
    cut = 1 + 2 * learner.partition.modules[1].start
    h = model[:cut](images)
    local = functional.cross_entropy(aux_of(learner, 0)(h), targets)
    task = functional.cross_entropy(model[cut:](h), targets)
    (local_gradient,) = torch.autograd.grad(local, h, retain_graph=True)
    (task_gradient,) = torch.autograd.grad(task, h)
    distance: Tensor = (local_gradient - task_gradient).square().sum()
    return float(distance)


def test_the_penalty_brings_gradients_together() -> None:
    """On one batch, the distance of the two gradients is less than half of that without it."""
    assert train_with(GradientReconciliation(10.0)) < 0.5 * train_with(lp.NoPenalty())


def test_reconciled_modules_may_be_frozen() -> None:
    model, (batch, *_) = network("resnet14")
    model.get_submodule("conv").requires_grad_(False)
    model.get_submodule("bn").requires_grad_(False)
    rule = lp.Rule(penalty=GradientReconciliation())
    learner = lp.Learner(model, rule, modules=7, optimizer=sgd, sample=batch)
    assert all(loss.isfinite() for loss in learner.step(batch))


def test_it_is_refused_where_other_losses_train_a_module() -> None:
    model, (batch, *_) = network("resnet14")
    rule = lp.Rule(lp.BackwardLinks(), penalty=GradientReconciliation())
    with pytest.raises(lp.BadInput, match="differentiates through its module"):
        lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batch)


def test_bad_fields_are_all_named() -> None:
    with pytest.raises(lp.BadInput, match=r"(?s)weight=0.*distance='l1'"):
        GradientReconciliation(weight=0, distance="l1")


def test_the_penalty_evaluates_back() -> None:
    penalty = GradientReconciliation()
    assert eval(repr(penalty), {"GradientReconciliation": GradientReconciliation}) == penalty
