"""TRGL: kinetic energy, against one connected graph in float64; its multiplier; what it refuses."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop import KineticPenalty
from localprop.errors import BadInput
from localprop.models.resnet import CifarResNet
from localprop.state import restore, state_of
from tests.helpers.connected import Connected, Losses, compare
from tests.helpers.connected_losses import AddPenalty, compare_penalty, local_loss, loss_of
from tests.helpers.layers import cut_once
from tests.helpers.points import build_head, count_parameters, list_leaf_types, make_point
from tests.helpers.ranks import RankPool, Run, compare_on_ranks, train_on_ranks
from tests.helpers.reference import NETWORKS, aux_of, batches_of, network, sgd

# The modules that end the residual branches of each of four modules.
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
        ["blocks.0.drop_path1", "blocks.0.drop_path2"],
        ["blocks.1.drop_path1", "blocks.1.drop_path2"],
        [f"blocks.{i}.drop_path{j}" for i in (2, 3) for j in (1, 2)],
    ],
}
GROWING = KineticPenalty(tau=0.5, growth=1.5, every=2)


def make_learner(
    model: nn.Module, rule: lp.Rule, batch: tuple[Tensor, Tensor], *, recompute: bool = False
) -> lp.Learner:
    partition = cut_once(model, batch, 4)
    return lp.Learner(
        model, rule, partition=partition, optimizer=sgd, sample=batch, recompute=recompute
    )


# --- kinetic energy ------------------------------------------------------------------------------


def add_energy(
    name: str, tau: float, late_factor: float, *, per_sample: bool = False
) -> AddPenalty:
    def add_penalty(connected: Connected, losses: Losses) -> Losses:
        penalized = {}
        for k, loss in losses.items():
            for path in BRANCHES[name][k]:
                r = connected.inner[path]
                squared = (r**2).sum() / (len(r) if per_sample else r.numel())
                loss = loss + squared / (2 * (tau if k < 2 else tau * late_factor))
            penalized[k] = loss
        return penalized

    return add_penalty


@pytest.mark.parametrize("name", ["resnet14", "timm_vit"])
def test_kinetic_energy_of_residual_branches(name: str) -> None:
    penalty = KineticPenalty(tau=0.5, late_factor=2.0)
    compare_penalty(name, penalty, add_energy(name, 0.5, 2.0))


def test_kinetic_energy_of_a_network_that_writes_into_its_branches() -> None:
    """torchvision adds the shortcut to the branch in place."""
    name = "torchvision_resnet18"
    compare_penalty(name, KineticPenalty(tau=0.5), add_energy(name, 0.5, 1.0))


def test_kinetic_energy_per_sample_is_no_mean_over_channels_and_space() -> None:
    penalty = KineticPenalty(tau=300.0, norm="sample")
    energy = add_energy("resnet14", 300.0, 1.0, per_sample=True)
    compare_penalty("resnet14", penalty, energy, parts=2)


def test_kinetic_energy_with_backward_links_trains_what_the_loss_trains() -> None:
    """The energy of its own module trains a tail. The next module's does not, as it lies there."""
    model, (batch, *_) = network("resnet14")
    assert isinstance(model, CifarResNet)
    rule = lp.Rule(lp.BackwardLinks(layers=1), penalty=KineticPenalty(tau=0.5))
    learner = lp.Learner(model, rule, modules=3, optimizer=sgd, sample=batch)
    reference = copy.deepcopy(model)
    heads = [copy.deepcopy(aux_of(learner, k)) for k in range(2)]
    learner.backward(batch)
    # The modules are: stem and block 0; blocks 1 and 2; blocks 3, 4 and 5.
    assert [list(module) for module in learner.partition.modules] == [[0, 1], [2, 3], [4, 5, 6]]
    inputs, targets = batch
    branches: list[Tensor] = []
    for block in reference.blocks:
        end = block.get_submodule("bn2")
        end.register_forward_hook(lambda module, args, output: branches.append(output.clone()))
    h = reference.relu(reference.bn(reference.conv(inputs)))
    outputs = []
    for block in list(reference.blocks)[:3]:
        h = block(h)
        outputs.append(h)
    energies = [branch.square().mean() for branch in branches]
    first = functional.cross_entropy(heads[0](outputs[0]), targets) + energies[0]
    second = functional.cross_entropy(heads[1](outputs[2]), targets) + energies[1] + energies[2]
    tail = list(reference.blocks[0].parameters())
    gradients = [torch.autograd.grad(loss, tail, retain_graph=True) for loss in (first, second)]
    for parameter, one, other in zip(model.blocks[0].parameters(), *gradients, strict=True):
        torch.testing.assert_close(parameter.grad, one + other, rtol=0, atol=1e-10)


def test_kinetic_energy_of_plain_layers_is_what_they_add() -> None:
    """Of eight layers the first seven keep the width 6, and the last one has 3 classes.

    A module's first layer starts from a constant.
    """

    def add_penalty(connected: Connected, losses: Losses) -> Losses:
        outputs = [connected.outputs[0], *(connected.inner[str(2 * i + 1)] for i in range(7))]
        moved = [outputs[i + 1] - outputs[i] for i in range(7)]
        penalized = {}
        for k, loss in losses.items():
            for r in moved[2 * k : 2 * k + 2]:
                loss = loss + (r**2).mean() / 2.0
            penalized[k] = loss
        return penalized

    compare_penalty("mlp", KineticPenalty(plain=True), add_penalty)


# --- kinetic energy whose multiplier grows -------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3])
def test_a_multiplier_that_grows_with_the_loss(parts: int) -> None:
    """Each call counts. At every second one the multiplier grows before it is used."""
    multipliers, calls = [1.0] * 4, [0] * 4

    def losses(connected: Connected) -> Losses:
        penalized = {}
        for k in range(4):
            loss = local_loss(connected, k)
            calls[k] += 1
            if calls[k] % 2 == 0:
                multipliers[k] += 1.5 * loss.item()
            penalized[k] = loss
            for path in BRANCHES["resnet14"][k]:
                penalized[k] = penalized[k] + (connected.inner[path] ** 2).mean() / multipliers[k]
            if BRANCHES["resnet14"][k]:  # what a checkpoint would hold
                connected.loss(k).get_buffer("multiplier").fill_(multipliers[k])
                connected.loss(k).get_buffer("calls").fill_(calls[k])
        return penalized

    model, _ = network("resnet14")
    batches = batches_of((3, 8, 8), 10, count=5)
    rule, to_layers = lp.Rule(penalty=GROWING), NETWORKS["resnet14"][1]
    compare(rule, model, batches, to_layers, losses, parts=parts)
    assert min(multipliers) > 5


def test_without_growth_nothing_is_kept() -> None:
    model, (batch, *_) = network("resnet14")
    plain, growing = (
        make_learner(copy.deepcopy(model), lp.trgl(growth=growth, every=2), batch)
        for growth in (0.0, 1.0)
    )
    kept = {name for name in growing.heads.state_dict() if "loss" in name}
    assert kept == {f"{k}.loss.{name}" for k in (1, 2, 3) for name in ("multiplier", "calls")}
    assert plain.heads.state_dict().keys() == growing.heads.state_dict().keys() - kept


def test_only_training_steps_let_the_multiplier_grow() -> None:
    model, (batch, *_) = network("resnet14")
    rule = lp.Rule(penalty=KineticPenalty(growth=1.0, every=1))
    learner = make_learner(model, rule, batch, recompute=True)
    learner.memory()
    learner.flops()
    learner.predict(batch[0])
    assert multipliers_of(learner) == [1.0] * 3
    (*_, task) = learner.step(batch)
    (*_, last) = multipliers_of(learner)
    assert loss_of(learner, 3).get_buffer("calls") == 1  # its forward ran twice
    assert 1 < last < 1 + task.item()  # by the loss without the penalty
    learner.heads.eval()
    learner.step(batch)
    assert multipliers_of(learner)[-1] == last


def multipliers_of(learner: lp.Learner) -> list[float]:
    buffers = learner.heads.named_buffers()
    return [buffer.item() for name, buffer in buffers if name.endswith("loss.multiplier")]


def test_a_run_with_a_growing_multiplier_resumes_to_the_same_bits() -> None:
    model, batches = network("resnet14")
    rule = lp.Rule(penalty=GROWING)
    undisturbed, resumed = (make_learner(copy.deepcopy(model), rule, batches[0]) for _ in range(2))
    for batch in batches:
        undisturbed.step(batch)
    state = state_of(undisturbed)
    assert state is not None
    restore(resumed, state)
    for batch in batches:
        one, other = undisturbed.step(batch), resumed.step(batch)
        assert torch.equal(torch.stack([*one]), torch.stack([*other]))
    assert multipliers_of(undisturbed) == multipliers_of(resumed)
    assert min(multipliers_of(resumed)) > 5


@pytest.mark.xdist_group("ranks")
def test_a_growing_multiplier_on_ranks_has_the_same_bits(pool: RankPool) -> None:
    options = {"modules": 6, "microbatches": 2, "recompute": True}
    compare_on_ranks(pool, Run(lp.Rule(penalty=GROWING), options=options), 2, 3)


@pytest.mark.xdist_group("ranks")
def test_replicas_have_multipliers_of_their_own_and_train_one_network(pool: RankPool) -> None:
    one, other = pool.run(2, train_on_ranks, Run(lp.Rule(penalty=GROWING), ranks={"replicas": 2}))
    differ = {
        name.rpartition(".")[2]
        for name in one.owned
        if not torch.equal(one.owned[name], other.owned[name])
    }
    assert differ == {"multiplier", "running_mean", "running_var"}


def test_a_path_that_is_dropped_has_no_energy() -> None:
    """What a block adds counts: 0 for a sample whose path is dropped, r / keep for the others."""
    torch.manual_seed(0)
    model = lp.models.swin_t(input_shape=(3, 64, 64), window=4)
    batch = torch.randn(8, 3, 64, 64), torch.arange(8)
    added: list[Tensor] = []
    losses = []
    for penalty in (lp.NoPenalty(), KineticPenalty(tau=10.0)):
        copied, rule = copy.deepcopy(model), lp.Rule(penalty=penalty)
        partition = lp.Partition.at(lp.layers_of(copied, batch[0]), (3, 6, 13))
        torch.manual_seed(0)
        learner = lp.Learner(copied, rule, partition=partition, optimizer=sgd, sample=batch)
        added.clear()
        for name, module in copied.named_modules():
            if name.endswith(("drop_path1", "drop_path2")):
                module.register_forward_hook(lambda _, args, output: added.append(output.detach()))
        losses.append([loss.item() for loss in learner.step(batch)])
    energies = [branch.square().mean().item() / 20 for branch in added]
    expected = [sum(energies[i:j]) for i, j in pairwise((0, 4, 8, 20, 24))]
    found = [with_energy - without for without, with_energy in zip(*losses, strict=True)]
    assert found == pytest.approx(expected, rel=1e-2)
    assert any((branch.flatten(1) == 0).all(1).any() for branch in added)


# --- which layers count --------------------------------------------------------------------------


def test_kinetic_energy_of_torchvisions_transformer() -> None:
    """The branches end behind the dropout that follows attention, and behind the MLP."""
    model = torchvision.models.VisionTransformer(32, 8, 4, 2, 16, 32, num_classes=10)
    layers = lp.layers_of(model, torch.zeros(2, 3, 32, 32))
    point = lp.AttachPoint(0, 2, 2, layers, layers.shapes[2], 10, start=1)
    blocks = "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"
    loss = KineticPenalty()(point, lp.CrossEntropy()(point))
    assert loss.taps == tuple(f"{block}.{end}" for block in blocks for end in ("dropout", "mlp"))


@pytest.mark.parametrize(
    ("model", "plain", "words"),
    [
        (lp.models.mlp(8, (6, 6, 6)), False, "KineticPenalty finds no residual branch"),
        (lp.models.mlp(8, (7, 6, 5)), True, "keeps its shape"),
    ],
)
def test_networks_without_anything_to_penalize_are_refused(
    model: nn.Module, plain: bool, words: str
) -> None:
    batch = torch.zeros(4, 8), torch.arange(4)
    with pytest.raises(lp.BadInput, match=words):
        lp.Learner(model, lp.trgl(plain=plain), modules=2, optimizer=sgd, sample=batch)


def test_the_late_factor_applies_to_the_second_half_of_the_modules() -> None:
    """The published rows: modules 1-2 and 3-4 of four; the first and the second of two."""
    penalty = KineticPenalty(tau=500000, late_factor=2)
    assert [1 / (2 * penalty.factor(k, 4)) for k in range(4)] == pytest.approx([5e5, 5e5, 1e6, 1e6])
    penalty = KineticPenalty(tau=50, late_factor=2)
    assert [1 / (2 * penalty.factor(k, 2)) for k in range(2)] == pytest.approx([50, 100])


# --- what is refused -----------------------------------------------------------------------------


def test_bad_fields_are_all_named() -> None:
    words = r"(?s)tau=0.*late_factor=-1.*norm='max'.*growth=-1.*every=0"
    with pytest.raises(lp.BadInput, match=words):
        KineticPenalty(tau=0, late_factor=-1, norm="max", growth=-1, every=0)


def test_targets_are_checked_behind_a_penalty() -> None:
    model, ((images, targets), *_) = network("resnet14")
    learner = make_learner(model, lp.Rule(penalty=KineticPenalty()), (images, targets))
    with pytest.raises(lp.BadInput, match="Labels run"):
        learner.step((images, targets + 10))


@pytest.mark.parametrize("penalty", [KineticPenalty(), GROWING], ids=repr)
def test_penalties_evaluate_back(penalty: KineticPenalty) -> None:
    assert eval(repr(penalty), {"KineticPenalty": KineticPenalty}) == penalty


# --- the auxiliary network, counted by hand from the paper's code ---------------------------------


def test_one_conv_heads_of_resnet110_on_stl10() -> None:
    heads: dict[int, nn.Sequential] = {}
    with torch.device("meta"):
        layers = lp.layers_of(lp.models.resnet110(), torch.zeros(2, 3, 96, 96))
        for layer in (0, 18, 19, 36, 37):
            point = lp.AttachPoint(layer, 55, layer, layers, layers.shapes[layer], 10)
            heads[layer] = build_head(lp.OneConvHead(), point)
    pools = [next(m for m in head if isinstance(m, nn.AvgPool2d)) for head in heads.values()]
    assert [pool.kernel_size for pool in pools] == [(16, 16)] * 4 + [(8, 8)]
    types = ["Conv2d", "ReLU", "AvgPool2d", "BatchNorm2d", "Flatten", "Linear"]
    assert list_leaf_types(heads[37]) == types
    # 9 * 64^2, 2 * 64, 64 channels of 3x3 averages to 10 classes
    assert count_parameters(heads[37]) == 36_864 + 128 + 5_770


def test_one_conv_heads_average_small_maps_and_tokens() -> None:
    maps, tokens = make_point(4, 2, 2), make_point(5, 4)
    assert lp.OneConvHead()(maps)(torch.zeros(2, 4, 2, 2)).shape == (2, 10)
    assert list_leaf_types(lp.OneConvHead()(tokens)) == ["LayerNorm", "Pool", "Linear"]
    each_token = lp.OneConvHead()(make_point(5, 4, outputs=(5, 10)))
    assert each_token(torch.zeros(2, 5, 4)).shape == (2, 5, 10)


def test_no_pools_are_refused() -> None:
    with pytest.raises(BadInput, match="pools"):
        lp.OneConvHead(())
