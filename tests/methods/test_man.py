"""MAN: heads behind an average of the next layer, against one connected graph in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.models.resnet import BasicBlock, CifarResNet
from tests.helpers.connected import Connected, Losses, compare
from tests.helpers.connected_losses import assert_trains_like, cross_entropy, task_loss
from tests.helpers.points import list_convs
from tests.helpers.reference import NETWORKS, aux_of, network, sgd


def next_block(connected: Connected, k: int) -> nn.Module:
    """The next module's first layer; of the network's last layer the block, not the classifier."""
    first = next(connected.modules[k + 1].children())
    return first[0] if isinstance(first, nn.Sequential) else first


def average_next_blocks(decay: float) -> Callable[[Connected], None]:
    """Let each EMA follow the next block."""

    def average(connected: Connected) -> None:
        for k in range(len(connected.modules) - 1):
            block = next_block(connected, k)
            for name, parameter in connected.aux(k).get_submodule("average").named_parameters():
                parameter.copy_(decay * parameter + (1 - decay) * block.get_parameter(name))

    return average


def add_next_layers(aux: nn.Module, features: Tensor, *, scaled: bool) -> Tensor:
    trained: Tensor = aux.get_submodule("own")(features)
    averaged: Tensor = aux.get_submodule("average")(features)
    if not scaled:
        return trained + averaged
    scale = aux.get_parameter("scale")
    return scale * trained + (2 - scale) * averaged


def behind_next_layers(*, scaled: bool) -> Callable[[Connected], Losses]:
    """The losses of heads that see the sum of LB and EMA."""

    def losses(connected: Connected) -> Losses:
        values = {len(connected.modules) - 1: task_loss(connected)}
        for k in range(len(connected.modules) - 1):
            aux = connected.aux(k)
            z = add_next_layers(aux, connected.outputs[k + 1], scaled=scaled)
            values[k] = cross_entropy(aux.get_submodule("head")(z), connected.targets)
        return values

    return losses


@pytest.mark.parametrize(("scaled", "modules", "parts"), [(False, 7, 1), (True, 3, 2)])
def test_the_average_of_the_next_layer(scaled: bool, modules: int, parts: int) -> None:
    model, batches = network("resnet14")
    learner = compare(
        lp.Rule(aux=lp.NextLayerHead(lp.Head(), decay=0.9, scaled=scaled)),
        model,
        batches,
        NETWORKS["resnet14"][1],
        behind_next_layers(scaled=scaled),
        modules=modules,
        parts=parts,
        before=average_next_blocks(0.9),
    )
    scales = [
        parameter.item()
        for name, parameter in learner.heads.named_parameters()
        if name.endswith("scale")
    ]
    assert len(scales) == (modules - 1 if scaled else 0)
    assert all(scale != 1 for scale in scales)


def test_the_average_of_a_layer_made_of_several_modules() -> None:
    """Linear and Tanh follow each other in one Sequential."""
    model, batches = network("mlp")
    averaged: list[Tensor] = []

    def average(connected: Connected) -> None:
        for k in range(3):
            linear = connected.modules[k + 1].get_submodule("0.0")
            for name in ("weight", "bias"):
                target = connected.aux(k).get_parameter(f"average.0.{name}")
                target.copy_(0.5 * target + 0.5 * linear.get_parameter(name))
                averaged.append(target)

    rule = lp.man(decay=0.5, aux=lp.Head(convs=0, linears=1))
    losses = behind_next_layers(scaled=False)
    compare(rule, model, batches, NETWORKS["mlp"][1], losses, before=average)
    assert len(averaged) == 18


def test_the_two_copies_start_apart_from_the_next_layer_and_from_each_other() -> None:
    model, (batch, *_) = network("resnet14")
    assert isinstance(model, CifarResNet)
    learner = lp.Learner(model, lp.man(), modules=7, optimizer=sgd, sample=batch)
    aux = aux_of(learner, 2)
    blocks = (aux.get_submodule("own"), aux.get_submodule("average"), model.blocks[2])
    weights = []
    for block in blocks:
        assert isinstance(block, BasicBlock)
        weights.append(block.conv1.weight)
    assert [tuple(weight.shape) for weight in weights] == [(32, 16, 3, 3)] * 3
    for i in range(3):
        assert not torch.equal(weights[i], weights[i - 1])
    assert not any(p.requires_grad for p in aux.get_submodule("average").parameters())


def decode_pixels(decoder: nn.Module, features: Tensor, size: torch.Size) -> Tensor:
    """A pixel decoder, written out."""
    narrow, wide = list_convs(decoder)
    (norm,) = (module for module in decoder.modules() if isinstance(module, nn.BatchNorm2d))
    maps = functional.interpolate(features, size=size, mode="bilinear", align_corners=True)
    maps = functional.conv2d(maps, narrow.weight, narrow.bias, padding=1)
    maps = functional.batch_norm(maps, None, None, norm.weight, norm.bias, training=True)
    maps = functional.relu(maps)
    return torch.sigmoid(functional.conv2d(maps, wide.weight, wide.bias, padding=1))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_decoder_and_a_head_behind_the_next_layer(scaled: bool) -> None:
    """Both see the sum of the two copies, which run once a step."""
    model, batches = network("resnet14")
    terms = lp.Terms((lp.Term(lp.PixelReconstruction(), 5.0), lp.Term(lp.CrossEntropy(), 0.5)))
    rule = (lp.man_plus if scaled else lp.man)(decay=0.9, aux=lp.Head(convs=2), loss=terms)
    learner = lp.Learner(
        model, rule, modules=4, optimizer=sgd, sample=batches[0], normalization=lp.Normalization()
    )

    def losses(connected: Connected) -> Losses:
        values, pixels = {3: task_loss(connected)}, connected.outputs[0].clamp(0, 1)
        for k in range(3):
            aux = connected.aux(k)
            z = add_next_layers(aux, connected.outputs[k + 1], scaled=scaled)
            decoder = connected.loss(k).get_submodule("loss.parts.0.decoders.0")
            chances = decode_pixels(decoder, z, pixels.shape[2:])
            error = -(pixels * chances.log() + (1 - pixels) * (1 - chances).log()).mean()
            logits = aux.get_submodule("head")(z)
            values[k] = 5 * error + 0.5 * cross_entropy(logits, connected.targets)
        return values

    connected = Connected(learner, NETWORKS["resnet14"][1])
    assert_trains_like(connected, learner, batches, losses, before=average_next_blocks(0.9))
    steps = aux_of(learner, 0).get_buffer("average.bn1.num_batches_tracked")
    assert steps == len(batches)


def test_a_loss_behind_the_next_layer_needs_its_head() -> None:
    model, (batch, *_) = network("resnet14")
    rule = lp.Rule(loss=lp.NextLayerLoss())
    with pytest.raises(lp.BadInput, match="aux=NextLayerHead"):
        lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batch).step(batch)


def test_bad_fields_are_named() -> None:
    with pytest.raises(lp.BadInput, match="decay=2"):
        lp.NextLayerHead(decay=2)
