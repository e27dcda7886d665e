"""Penalties against one connected graph, three steps of SGD with momentum in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from connected import Connected, Losses
from connected import compare as connected_to
from crew import Crew, Run
from reference import NETWORKS, batches_of, network, sgd
from test_ranks import compare as compare_on_ranks
from test_ranks import train_on_ranks
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop import Kinetic, Reconciled
from localprop.training.checkpoint import restore, state_of

Penalised = Callable[[Connected, Losses], Losses]  # the losses with what is added to each


def compare(name: str, penalty: object, penalised: Penalised, *, modules: int = 4, parts: int = 1) -> None:
    def losses(connected: Connected) -> Losses:
        base = {
            k: functional.cross_entropy(connected.aux(k)(connected.outputs[k + 1]), connected.targets)
            for k in range(modules)
        }
        return penalised(connected, base)

    model, batches = network(name)
    rule = lp.Rule(penalty=penalty)
    connected_to(rule, model, batches, NETWORKS[name][1], losses, modules=modules, parts=parts)


# --- kinetic energy -------------------------------------------------------------------------------------------------------

# Which inner outputs each of four modules counts.
BRANCHES = {
    "resnet14": [
        [],
        ["blocks.0.bn2", "blocks.1.bn2"],
        ["blocks.2.bn2", "blocks.3.bn2"],
        ["blocks.4.bn2", "blocks.5.bn2"],
    ],
    "torchvision_resnet18": [
        ["layer1.0.bn2"],
        ["layer1.1.bn2", "layer2.0.bn2"],
        ["layer2.1.bn2", "layer3.0.bn2"],
        ["layer3.1.bn2", "layer4.0.bn2", "layer4.1.bn2"],
    ],
    "timm_vit": [
        [],
        ["blocks.0.attn", "blocks.0.mlp"],
        ["blocks.1.attn", "blocks.1.mlp"],
        ["blocks.2.attn", "blocks.2.mlp", "blocks.3.attn", "blocks.3.mlp"],
    ],
}


def energy(name: str, tau: float, late: float, *, per_sample: bool = False) -> Penalised:
    def penalised(connected: Connected, base: Losses) -> Losses:
        added = {}
        for k, loss in base.items():
            for path in BRANCHES[name][k]:
                r = connected.inner[path]
                squared = (r**2).sum() / (len(r) if per_sample else r.numel())
                loss = loss + squared / (2 * (tau if k < 2 else tau * late))
            added[k] = loss
        return added

    return penalised


@pytest.mark.parametrize("name", ["resnet14", "timm_vit"])
def test_kinetic_energy_of_residual_branches(name: str) -> None:
    compare(name, Kinetic(tau=0.5, late=2.0), energy(name, 0.5, 2.0))


def test_kinetic_energy_of_a_network_that_writes_into_its_branches() -> None:
    """torchvision adds the shortcut to the branch in place."""
    compare("torchvision_resnet18", Kinetic(tau=0.5), energy("torchvision_resnet18", 0.5, 1.0))


def test_kinetic_energy_per_sample_is_no_mean_over_channels_and_space() -> None:
    compare("resnet14", Kinetic(tau=300.0, norm="sample"), energy("resnet14", 300.0, 1.0, per_sample=True), parts=2)


def test_kinetic_energy_with_backward_links_trains_what_the_loss_trains() -> None:
    """A tail is trained by its own module's energy, and not by that of the next, which lies in that module alone."""
    model, (batch, *_) = network("resnet14")
    rule = lp.Rule(lp.BackwardLinks(layers=1), penalty=Kinetic(tau=0.5))
    learner = lp.Learner(model, rule, modules=3, optimizer=sgd, sample=batch)
    twin, heads = copy.deepcopy(learner.model), copy.deepcopy(learner.heads)
    learner.backward(batch)
    *body, last = twin.blocks
    inner: dict[str, Tensor] = {}
    for i, block in enumerate(twin.blocks):
        block.bn2.register_forward_hook(lambda m, a, out, i=i: inner.__setitem__(i, out))
    h = twin.relu(twin.bn(twin.conv(batch[0])))
    outputs = []
    for block in body:
        h = block(h)
        outputs.append(h)
    h = twin.fc(last(h).mean((2, 3)))
    # modules: stem and block 0; blocks 1, 2 ; blocks 3, 4, 5
    assert [list(module) for module in learner.partition.modules] == [[0, 1], [2, 3], [4, 5, 6]]
    first = functional.cross_entropy(heads["0"]["aux"](outputs[0]), batch[1]) + inner[0].square().mean()
    second = functional.cross_entropy(heads["1"]["aux"](outputs[2]), batch[1])
    second = second + inner[1].square().mean() + inner[2].square().mean()
    tail = list(twin.blocks[0].parameters())
    for loss in (first, second):
        for parameter, gradient in zip(tail, torch.autograd.grad(loss, tail, retain_graph=True), strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    for own, other in zip(model.blocks[0].parameters(), tail, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=1e-10)


def test_kinetic_energy_of_plain_layers_is_what_they_add() -> None:
    """Eight layers of width 6, the last one to 3 classes; a module's first layer starts from a constant."""

    def penalised(connected: Connected, base: Losses) -> Losses:
        outputs = [connected.outputs[0], *(connected.inner[str(2 * i + 1)] for i in range(7))]
        moved = [outputs[i + 1] - outputs[i] for i in range(7)]
        own = {k: moved[2 * k : 2 * k + 2] for k in range(4)}
        return {k: loss + sum((r**2).mean() / 2.0 for r in own[k]) for k, loss in base.items()}

    compare("mlp", Kinetic(plain=True), penalised)


# --- kinetic energy whose multiplier grows --------------------------------------------------------------------------------

GROWING = Kinetic(tau=0.5, growth=1.5, every=2)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_multiplier_that_grows_with_the_loss(parts: int) -> None:
    """Each call counts; at every second one the multiplier grows before it is used."""
    multipliers, calls = [1.0] * 4, [0] * 4

    def losses(connected: Connected) -> Losses:
        added = {}
        for k in range(4):
            loss = functional.cross_entropy(connected.aux(k)(connected.outputs[k + 1]), connected.targets)
            calls[k] += 1
            if calls[k] in (2, 4, 6, 8, 10, 12, 14):
                multipliers[k] += 1.5 * loss.item()
            energy = sum((connected.inner[path] ** 2).mean() for path in BRANCHES["resnet14"][k])
            added[k] = loss + energy / multipliers[k]
            if BRANCHES["resnet14"][k]:  # what a checkpoint would hold
                connected.loss(k).multiplier.fill_(multipliers[k])
                connected.loss(k).calls.fill_(calls[k])
        return added

    model, _ = network("resnet14")
    batches = batches_of((3, 8, 8), 10, count=5)
    connected_to(lp.Rule(penalty=GROWING), model, batches, NETWORKS["resnet14"][1], losses, parts=parts)
    assert min(multipliers) > 5


def test_without_growth_nothing_is_kept() -> None:
    model, (batch, *_) = network("resnet14")
    plain, growing = (
        lp.Learner(copy.deepcopy(model), lp.trgl(growth=growth, every=2), modules=4, optimizer=sgd, sample=batch)
        for growth in (0.0, 1.0)
    )
    kept = {name for name in growing.heads.state_dict() if "loss" in name}
    assert kept == {f"{k}.loss.{name}" for k in (1, 2, 3) for name in ("multiplier", "calls")}
    assert plain.heads.state_dict().keys() == growing.heads.state_dict().keys() - kept


def test_only_training_steps_let_the_multiplier_grow() -> None:
    model, (batch, *_) = network("resnet14")
    rule = lp.Rule(penalty=Kinetic(growth=1.0, every=1))
    learner = lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batch, recompute=True)
    learner.memory()
    learner.flops()
    learner.predict(batch[0])
    assert multipliers_of(learner) == [1.0] * 3
    (*_, task) = learner.step(batch)
    (*_, last) = multipliers_of(learner)
    assert learner.heads["3"]["loss"].calls == 1  # its forward ran twice
    assert 1 < last < 1 + task.item()  # by the loss without the penalty
    learner.heads.eval()
    learner.step(batch)
    assert multipliers_of(learner)[-1] == last


def multipliers_of(learner: lp.Learner) -> list[float]:
    return [loss.multiplier.item() for head in learner.heads.values() if hasattr(loss := head["loss"], "multiplier")]


def test_a_run_with_a_growing_multiplier_resumes_to_the_same_bits() -> None:
    model, batches = network("resnet14")
    options = {"modules": 4, "optimizer": sgd, "sample": batches[0]}
    undisturbed, resumed = (lp.Learner(copy.deepcopy(model), lp.Rule(penalty=GROWING), **options) for _ in range(2))
    for batch in batches:
        undisturbed.step(batch)
    state = state_of(undisturbed)
    assert state is not None
    restore(resumed, state)
    for batch in batches:
        assert torch.equal(torch.stack([*undisturbed.step(batch)]), torch.stack([*resumed.step(batch)]))
    assert multipliers_of(undisturbed) == multipliers_of(resumed)
    assert min(multipliers_of(resumed)) > 5


@pytest.mark.xdist_group("ranks")
def test_a_growing_multiplier_on_ranks_has_the_same_bits(crew: Crew) -> None:
    options = {"modules": 6, "microbatches": 2, "recompute": True}
    compare_on_ranks(crew, Run(lp.Rule(penalty=GROWING), options=options), 2, 3)


@pytest.mark.xdist_group("ranks")
def test_replicas_have_multipliers_of_their_own_and_train_one_network(crew: Crew) -> None:
    one, other = crew.run(2, train_on_ranks, Run(lp.Rule(penalty=GROWING), ranks={"replicas": 2}))
    differ = {name.rpartition(".")[2] for name in one.own if not torch.equal(one.own[name], other.own[name])}
    assert differ == {"multiplier", "running_mean", "running_var"}


# --- which layers count ---------------------------------------------------------------------------------------------------


def test_kinetic_energy_of_torchvision_s_transformer() -> None:
    """The branches end behind the dropout that follows attention, and behind the MLP."""
    model = torchvision.models.VisionTransformer(32, 8, 4, 2, 16, 32, num_classes=10)
    found = lp.layers_of(model, torch.zeros(2, 3, 32, 32))
    site = lp.Site(0, 2, 2, found, found.shapes[2], 10, start=1)
    blocks = "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"
    loss = Kinetic()(site, lp.CrossEntropy()(site))
    assert loss.taps == tuple(f"{block}.{end}" for block in blocks for end in ("dropout", "mlp"))


@pytest.mark.parametrize(
    ("model", "plain", "words"),
    [
        (lp.models.mlp(8, (6, 6, 6)), False, "no residual branch"),
        (lp.models.mlp(8, (7, 6, 5)), True, "keeps its shape"),
    ],
)
def test_networks_without_anything_to_penalise_are_refused(model: nn.Module, plain: bool, words: str) -> None:
    batch = torch.zeros(4, 8), torch.arange(4)
    with pytest.raises(lp.BadInput, match=words):
        lp.Learner(model, lp.trgl(plain=plain), modules=2, optimizer=sgd, sample=batch)


def test_half_of_the_modules_is_late() -> None:
    """The published rows: modules 1-2 and 3-4 of four; the first and the second of two."""
    kinetic = Kinetic(tau=500000, late=2)
    assert [1 / (2 * kinetic.factor(k, 4)) for k in range(4)] == pytest.approx([5e5, 5e5, 1e6, 1e6])
    assert [1 / (2 * Kinetic(50, 2).factor(k, 2)) for k in range(2)] == pytest.approx([50, 100])


# --- gradients that agree -------------------------------------------------------------------------------------------------


def reconciled(weight: float, *, cosine: bool = False) -> Penalised:
    def penalised(connected: Connected, base: Losses) -> Losses:
        added = {0: base[0]}
        for k in range(1, len(base)):
            cut = connected.outputs[k]
            wanted = torch.autograd.grad(base[k - 1], cut, retain_graph=True)[0]
            received = torch.autograd.grad(base[k], cut, create_graph=True)[0]
            terms = []
            for g_in, g_out in zip(received, wanted, strict=True):  # sample by sample
                g_in, g_out = len(cut) * g_in.flatten(), len(cut) * g_out.flatten()
                terms.append(1 - g_in @ g_out / (g_in.norm() * g_out.norm()) if cosine else ((g_in - g_out) ** 2).sum())
            added[k] = base[k] + weight * sum(terms) / len(cut)
        return added

    return penalised


@pytest.mark.parametrize("name", ["mlp", "resnet14"])
@pytest.mark.parametrize("parts", [1, 3])
def test_reconciled_gradients(name: str, parts: int) -> None:
    compare(name, Reconciled(weight=0.3), reconciled(0.3), parts=parts)


def test_reconciled_gradients_by_their_angle() -> None:
    compare("resnet14", Reconciled(0.5, distance="cosine"), reconciled(0.5, cosine=True), modules=3)


def test_the_penalty_brings_gradients_together() -> None:
    """On one batch, the distance of the two gradients falls with the penalty to less than without it."""
    distances = []
    for penalty in (lp.NoPenalty(), Reconciled(10.0)):
        torch.manual_seed(0)
        model = lp.models.mlp(6, (16, 16, 16), 3).double()
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
        cut = learner.partition.modules[1].start
        parts = list(model)
        h = nn.Sequential(*parts[: 1 + 2 * cut])(images)
        local = functional.cross_entropy(learner.heads["0"]["aux"](h), targets)
        task = functional.cross_entropy(nn.Sequential(*parts[1 + 2 * cut :])(h), targets)
        apart = torch.autograd.grad(local, h, retain_graph=True)[0] - torch.autograd.grad(task, h)[0]
        distances.append(apart.square().sum().item())
    assert distances[1] < 0.5 * distances[0]


def test_reconciled_modules_may_be_frozen() -> None:
    model, (batch, *_) = network("resnet14")
    model.conv.requires_grad_(False)
    model.bn.requires_grad_(False)
    learner = lp.Learner(model, lp.Rule(penalty=Reconciled()), modules=7, optimizer=sgd, sample=batch)
    assert all(loss.isfinite() for loss in learner.step(batch))


# --- what is refused ------------------------------------------------------------------------------------------------------


def test_bad_fields_are_all_named() -> None:
    with pytest.raises(lp.BadInput, match=r"(?s)tau=0.*late=-1.*norm='max'.*growth=-1.*every=0"):
        Kinetic(tau=0, late=-1, norm="max", growth=-1, every=0)
    with pytest.raises(lp.BadInput, match=r"(?s)weight=0.*distance='l1'"):
        Reconciled(weight=0, distance="l1")


def test_targets_are_checked_behind_a_penalty() -> None:
    model, ((images, targets), *_) = network("resnet14")
    learner = lp.Learner(model, lp.Rule(penalty=Kinetic()), modules=4, optimizer=sgd, sample=(images, targets))
    with pytest.raises(lp.BadInput, match="Labels run"):
        learner.step((images, targets + 10))


def test_reconciled_is_refused_where_other_losses_train_a_module() -> None:
    model, (batch, *_) = network("resnet14")
    with pytest.raises(lp.BadInput, match="differentiates through its module"):
        lp.Learner(model, lp.Rule(lp.BackwardLinks(), penalty=Reconciled()), modules=4, optimizer=sgd, sample=batch)


@pytest.mark.parametrize("penalty", [Kinetic(), GROWING, Reconciled()], ids=repr)
def test_penalties_evaluate_back(penalty: object) -> None:
    assert eval(repr(penalty), vars(lp)) == penalty
