"""An existing optimizer trains heads and encoders in its own groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler, swa_utils

import localprop as lp
from tests.helpers.reference import assert_same_state, network

MLP, BATCHES = network("mlp")
Scheduler = Callable[[Optimizer], Any]

SCHEDULERS: dict[str, Scheduler] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.5)], milestones=[1]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, min_lr=[1e-3, 1e-3]),
    "swa": lambda o: swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=3),
    "timm": lambda o: CosineLRScheduler(o, t_initial=4, warmup_t=1),
}


def make_groups(named: list[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """No decay on vectors."""
    return [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
    ]


def train(optimizer: str, schedule: Scheduler) -> tuple[lp.Learner, list[float]]:
    """Three steps with a scheduler, which an existing optimizer has before the learner."""
    model, batches = network("mlp")

    def make(named: list[tuple[str, nn.Parameter]]) -> Optimizer:
        return SGD(make_groups(named), lr=0.1, momentum=0.5)

    existing = make(list(model.named_parameters()))
    schedulers = [schedule(existing)]
    learner = lp.Learner(
        model,
        lp.greedy(),
        modules=4,
        optimizer=existing if optimizer == "existing" else make,
        sample=batches[0],
    )
    if optimizer == "factory":
        schedulers = [schedule(each) for each in learner.optimizers]
    rates = []
    for i, batch in enumerate(batches):
        rates.append(learner.optimizers[0].param_groups[0]["lr"])
        learner.step(batch)
        for each in schedulers:
            if isinstance(each, lr_scheduler.ReduceLROnPlateau | CosineLRScheduler):
                each.step(i + 1)
            else:
                each.step()
    return learner, rates


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_built_before_the_learner_reaches_the_heads(name: str) -> None:
    existing, rates = train("existing", SCHEDULERS[name])
    made, expected = train("factory", SCHEDULERS[name])
    assert rates == expected
    assert len(set(rates)) > 1
    assert_same_state(existing.model, made.model)
    assert_same_state(existing.heads, made.heads)


# --- the groups that they join ----------------------------------------------------------------


def find_options(learner: lp.Learner, key: str) -> dict[str, Any]:
    """An option by the name of each parameter."""
    return {
        name: group.options[key]
        for group in learner.optimizer_groups()
        for name in group.parameters
    }


@pytest.mark.parametrize("rule", [lp.backlink(), lp.contsup(), lp.auglocal(depth=2)])
def test_heads_and_encoders_join_the_groups_of_the_layers_where_they_stand(rule: lp.Rule) -> None:
    """Rates by layer, each with and without decay: every combination is a group."""
    model = lp.models.resnet14()
    batch = torch.zeros(4, 3, 8, 8), torch.zeros(4).long()
    parts: list[tuple[str, float]] = [("conv", 1), ("bn", 1), ("fc", 6)]
    parts += [(f"blocks.{i}.", i + 1) for i in range(6)]
    rates = dict(parts)
    groups = [
        group | {"lr": rate}
        for part, rate in rates.items()
        for group in make_groups(
            [(n, p) for n, p in model.named_parameters() if n.startswith(part)]
        )
        if group["params"]
    ]
    learner = lp.Learner(
        model, rule, modules=4, optimizer=SGD(groups, lr=0.0), sample=batch, seed=3
    )
    ends = {str(k): module[-1] for k, module in enumerate(learner.partition.modules)}
    starts = {str(k): module[0] for k, module in enumerate(learner.partition.modules)}
    assert learner.partition.layers.names[1:] == tuple(f"blocks.{i}" for i in range(6))
    decay, lr = find_options(learner, "weight_decay"), find_options(learner, "lr")
    assert set(lr) == {name for name, _ in learner.named_parameters()}
    gained = 0
    for name, parameter in learner.named_parameters():
        kind, _, rest = name.partition(".")
        if kind in ("heads", "encoders"):
            layer = (ends if kind == "heads" else starts)[rest.partition(".")[0]]
            assert lr[name] == max(layer, 1), name
            gained += 1
        assert decay[name] == (0.1 if parameter.ndim > 1 else 0.0), name
    assert gained > 0


def test_a_bias_joins_the_group_of_biases_and_a_norm_that_of_norms() -> None:
    """Where a layer has both, the types of modules decide."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    biases = [p for name, p in model.named_parameters() if name in ("0.bias", "3.bias")]
    rest = [p for p in model.parameters() if all(p is not bias for bias in biases)]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": biases, "weight_decay": 0.0}]
    learner = lp.Learner(
        model,
        lp.greedy(lp.Head(convs=0, linears=2)),
        modules=2,
        optimizer=AdamW(groups),
        sample=(torch.zeros(4, 4), torch.zeros(4).long()),
    )
    _, second = learner.optimizer_groups()
    heads = {name for name, _ in learner.heads.named_parameters("heads") if name.endswith("bias")}
    assert len(heads) > 0
    assert set(second.parameters) == {"0.bias", "3.bias", *heads}


def test_names_in_the_groups_stay_beside_their_parameters() -> None:
    model = lp.models.resnet8()
    optimizer = SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    batch = torch.zeros(4, 3, 8, 8), torch.zeros(4).long()
    learner = lp.Learner(model, lp.greedy(), modules=4, optimizer=optimizer, sample=batch)
    learner.step(batch)
    model.fc = nn.Linear(64, 5)
    learner.rebuild()
    (group,) = optimizer.param_groups
    names = {id(p): name for name, p in learner.named_parameters()}
    assert group["param_names"] == [names[id(p)] for p in group["params"]]
    assert set(group["param_names"]) == set(names.values())
    assert all(isinstance(value, Tensor) for value in optimizer.state[model.fc.weight].values())


# --- what is refused --------------------------------------------------------------------------


def test_the_line_of_the_message_trains_a_part() -> None:
    """Plain PyTorch would compute gradients that nobody uses."""
    model, batches = network("mlp")
    optimizer = SGD(model[-1].parameters(), lr=0.1)  # type: ignore[index]
    arguments: dict[str, Any] = {"modules": 2, "optimizer": optimizer, "sample": batches[0]}
    with pytest.raises(lp.BadInput, match=r"lacks parameters .* and 9 more.*freeze") as refusal:
        lp.Learner(model, lp.greedy(), **arguments)
    line = str(refusal.value)[str(refusal.value).index("for p in set") :]
    exec(line, {"model": model, "optimizer": optimizer})
    before = [p.clone() for p in model.parameters()]
    learner = lp.Learner(model, lp.end_to_end(), **arguments)
    learner.step(batches[0])
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [False] * (len(moved) - 2) + [True, True]


def test_an_existing_optimizer_that_runs_the_model_again_is_refused() -> None:
    model, batches = network("mlp")
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(lp.BadInput, match="LBFGS runs the model again"):
        lp.Learner(model, lp.greedy(), modules=2, optimizer=optimizer, sample=batches[0])
