"""Heads that hold the network's own parameters, and features reconstructed, against one connected graph in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from connected import Connected, Losses, compare
from reference import NETWORKS, batches_of, network, sgd
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp

WORDS, CONTEXT, WIDTH = 11, 6, 8


def language_model(blocks: int = 4) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = lp.models.transformer_lm(WORDS, CONTEXT, width=WIDTH, heads=2, blocks=blocks).double()
    with torch.no_grad():
        for parameter in model.parameters():  # its own weights are so small that heads would hardly see it
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model, [(torch.randint(WORDS, (5, CONTEXT)), torch.randint(WORDS, (5, CONTEXT))) for _ in range(4)]


def layers_of_language_model(model: nn.Module) -> list[nn.Module]:
    *blocks, last = model.blocks
    return [model.embed, *blocks, nn.Sequential(last, model.norm, model.unembed)]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    if logits.ndim > 2:
        logits, targets = logits.flatten(0, 1), targets.flatten()
    return functional.cross_entropy(logits, targets)


def task(connected: Connected) -> Tensor:
    return cross_entropy(connected.outputs[-1], connected.targets)


# --- the next layer, averaged -------------------------------------------------------------------------------------------


def next_block(connected: Connected, k: int) -> nn.Module:
    first = connected.modules[k + 1][0]
    return first[0] if isinstance(first, nn.Sequential) else first  # of the last layer its block, not the classifier


def momentum(decay: float) -> Callable[[Connected], None]:
    def follow(connected: Connected) -> None:
        for k in range(len(connected.modules) - 1):
            theirs = dict(next_block(connected, k).named_parameters())
            for name, parameter in connected.aux(k).average.named_parameters():
                parameter.copy_(decay * parameter + (1 - decay) * theirs[name])

    return follow


def behind_next_layers(*, scaled: bool) -> Callable[[Connected], Losses]:
    def losses(connected: Connected) -> Losses:
        found = {len(connected.modules) - 1: task(connected)}
        for k in range(len(connected.modules) - 1):
            aux, h = connected.aux(k), connected.outputs[k + 1]
            own, average = aux.own(h), aux.average(h)
            y = aux.scale * own + (2 - aux.scale) * average if scaled else own + average
            found[k] = cross_entropy(aux.head(y), connected.targets)
        return found

    return losses


@pytest.mark.parametrize(("scaled", "modules", "parts"), [(False, 7, 1), (True, 3, 2)])
def test_the_average_of_the_next_layer(scaled: bool, modules: int, parts: int) -> None:
    model, batches = network("resnet14")
    rule = lp.Rule(aux=lp.NextLayerHead(lp.Head(), decay=0.9, scaled=scaled))
    losses = behind_next_layers(scaled=scaled)
    to_layers = NETWORKS["resnet14"][1]
    learner = compare(rule, model, batches, to_layers, losses, modules=modules, parts=parts, before=momentum(0.9))
    shares = [parameter.item() for name, parameter in learner.heads.named_parameters() if name.endswith("scale")]
    assert len(shares) == (modules - 1 if scaled else 0)
    assert all(share != 1 for share in shares)


def test_the_average_of_a_layer_made_of_several_modules() -> None:
    """Linear and Tanh follow each other in one Sequential."""
    model, batches = network("mlp")
    averaged: list[Tensor] = []

    def follow(connected: Connected) -> None:
        for k in range(3):
            linear = connected.modules[k + 1][0][0]
            for name in ("weight", "bias"):
                target = connected.aux(k).average.get_parameter(f"0.{name}")
                target.copy_(0.5 * target + 0.5 * linear.get_parameter(name))
                averaged.append(target)

    rule = lp.man(decay=0.5, aux=lp.Head(convs=0, linears=1))
    compare(rule, model, batches, NETWORKS["mlp"][1], behind_next_layers(scaled=False), before=follow)
    assert len(averaged) == 18


def test_the_two_copies_begin_apart_from_the_next_layer_and_from_each_other() -> None:
    model, (batch, *_) = network("resnet14")
    learner = lp.Learner(model, lp.man(), modules=7, optimizer=sgd, sample=batch)
    aux = learner.heads["2"]["aux"]
    weights = [part.conv1.weight for part in (aux.own, aux.average, model.blocks[2])]
    assert [tuple(weight.shape) for weight in weights] == [(32, 16, 3, 3)] * 3
    for i in range(3):
        assert not torch.equal(weights[i], weights[i - 1])
    assert not any(parameter.requires_grad for parameter in aux.average.parameters())


def decoded_pixels(decoder: nn.Module, y: Tensor, size: torch.Size) -> Tensor:
    _, narrow, norm, _, wide = decoder
    maps = functional.interpolate(y, size=size, mode="bilinear", align_corners=True)
    maps = functional.conv2d(maps, narrow.weight, narrow.bias, padding=1)
    maps = functional.relu(functional.batch_norm(maps, None, None, norm.weight, norm.bias, training=True))
    return torch.sigmoid(functional.conv2d(maps, wide.weight, wide.bias, padding=1))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_decoder_and_a_head_behind_the_next_layer(scaled: bool) -> None:
    """Both see what the two copies make, which run once a step."""
    model, batches = network("resnet14")
    terms = lp.Terms((lp.Term(lp.PixelReconstruction(), 5.0), lp.Term(lp.CrossEntropy(), 0.5)))
    rule = (lp.man_plus if scaled else lp.man)(decay=0.9, aux=lp.Head(convs=2), loss=terms)
    learner = lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batches[0], normalised=lp.Normalised())
    connected = Connected(learner, NETWORKS["resnet14"][1])

    def losses(connected: Connected) -> Losses:
        found, pixels = {3: task(connected)}, connected.outputs[0].clamp(0, 1)
        for k in range(3):
            aux, h = connected.aux(k), connected.outputs[k + 1]
            share = aux.scale if scaled else 1
            y = share * aux.own(h) + (2 - share) * aux.average(h)
            chances = decoded_pixels(connected.loss(k).loss.parts[0].decoders[0], y, pixels.shape[2:])
            error = -(pixels * chances.log() + (1 - pixels) * (1 - chances).log()).mean()
            found[k] = 5 * error + 0.5 * cross_entropy(aux.head(y), connected.targets)
        return found

    for batch in batches:
        found, expected = learner.step(batch), connected.step(batch, losses, before=momentum(0.9))
        assert [loss.item() for loss in found] == pytest.approx([expected[k] for k in range(4)], abs=1e-9)
    # Buffers are not compared: the loop above writes the decoders' BatchNorm out.
    for own, other in ((model, connected.model), (learner.heads, connected.heads)):
        for (name, a), b in zip(own.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    assert learner.heads["0"]["aux"].average.bn1.num_batches_tracked == len(batches)


def test_a_loss_behind_the_next_layer_needs_its_head() -> None:
    model, (batch, *_) = network("resnet14")
    rule = lp.Rule(loss=lp.ThroughNextLayer())
    with pytest.raises(lp.BadInput, match="aux=NextLayerHead"):
        lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batch).step(batch)


# --- the network's own read-out -------------------------------------------------------------------------------------------


def root_mean_square(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps) * weight


def read_out(connected: Connected) -> Losses:
    found = {len(connected.modules) - 1: task(connected)}
    for k in range(len(connected.modules) - 1):
        aux, h = connected.aux(k), connected.outputs[k + 1]
        for block in aux.body[:2]:
            h = block(h)
        h = h.mean((2, 3)) if h.ndim == 4 else h
        h = h @ aux.widened.weight.T if h.shape[-1] != aux.readout.shape[1] else h
        logits = root_mean_square(h, aux.norm.weight) @ aux.readout.T * aux.temperature
        found[k] = cross_entropy(logits, connected.targets)
    return found


def refreshed(name: str, every: int) -> Callable[[Connected], None]:
    steps = iter(range(100))

    def copy_after(connected: Connected) -> None:
        if next(steps) % every == 0:
            for k in range(len(connected.modules) - 1):
                connected.aux(k).readout.copy_(connected.model.get_parameter(name))

    return copy_after


@pytest.mark.parametrize("every", [1, 2])
def test_a_shared_read_out_of_a_language_model(every: int) -> None:
    model, batches = language_model()
    before = model.unembed.weight.detach().clone()
    rule, after = lp.solo(every=every), refreshed("unembed.weight", every)
    learner = compare(rule, model, batches, layers_of_language_model, read_out, modules=2, after=after)
    aux = learner.heads["0"]["aux"]
    assert not aux.readout.requires_grad
    assert not torch.equal(aux.readout, before)
    assert torch.equal(aux.readout, model.unembed.weight) == (
        every == 1
    )  # of steps 0..3, step 2 is the last to refresh
    assert type(aux.body[0]) is type(model.blocks[0])
    assert len(aux.body) == 2


def test_a_shared_read_out_in_half_precision() -> None:
    """Without warnings, which are errors here."""
    model, (batch, *_) = language_model()
    learner = lp.Learner(model.float(), lp.solo(), modules=2, optimizer=sgd, sample=batch, precision="bf16")
    assert all(loss.isfinite() for loss in learner.step(batch))


def test_a_shared_read_out_begins_as_a_copy() -> None:
    model, (batch, *_) = language_model()
    learner = lp.Learner(model, lp.solo(), modules=4, optimizer=sgd, sample=batch)
    assert all(torch.equal(learner.heads[str(k)]["aux"].readout, model.unembed.weight) for k in range(3))


def test_a_shared_read_out_of_an_image_network() -> None:
    """The stem and the first blocks of a stage change the shape of what they get: their neighbours are copied instead."""
    model, batches = network("resnet14")
    after = refreshed("fc.weight", 1)
    learner = compare(lp.solo(), model, batches, NETWORKS["resnet14"][1], read_out, modules=7, after=after)
    widths = [[block.conv1.weight.shape[:2] for block in learner.heads[str(k)]["aux"].body[:2]] for k in range(6)]
    assert widths == [[(width, width)] * 2 for width in (16, 16, 16, 32, 32, 64)]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (lp.SharedReadout(readout="head.weight"), "no parameter 'head.weight'"),
        (lp.SharedReadout(readout="conv.weight"), r"\(16, 3, 3, 3\), but must have a row for each of the 10 outputs"),
    ],
)
def test_read_outs_that_do_not_fit_are_refused(head: lp.SharedReadout, reason: str) -> None:
    model, (batch, *_) = network("resnet14")
    with pytest.raises(lp.BadInput, match=reason):
        lp.Learner(model, lp.Rule(aux=head), modules=4, optimizer=sgd, sample=batch)


def test_blocks_that_cannot_be_copied_are_refused() -> None:
    torch.manual_seed(0)
    model, ((images, targets), *_) = (
        nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)),
        batches_of((6,), 3),
    )
    with pytest.raises(lp.BadInput, match=r"No layer keeps features of the shape \(7, 5\).*blocks=0"):
        lp.Learner(model.double(), lp.solo(), modules=3, optimizer=sgd, sample=(images, targets))
    lp.Learner(model.double(), lp.solo(blocks=0), modules=3, optimizer=sgd, sample=(images, targets))


# --- reconstruction -------------------------------------------------------------------------------------------------------


def bottleneck(decoder: nn.Module, x: Tensor) -> Tensor:
    norm, narrow, _, wide = decoder
    normed = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)
    hidden = (normed * norm.weight + norm.bias) @ narrow.weight.T + narrow.bias
    return functional.gelu(hidden) @ wide.weight.T + wide.bias


def test_reconstruction_of_a_language_models_features() -> None:
    """The first module gives back the token embeddings, the second its input; the weight is shared by the two."""

    def losses(connected: Connected) -> Losses:
        targets = [connected.inner["embed"].detach(), connected.outputs[1].detach()]
        return {2: task(connected)} | {
            k: 10 / 2 * (bottleneck(connected.loss(k).decoder, connected.outputs[k + 1]) - targets[k]).square().mean()
            for k in range(2)
        }

    model, batches = language_model(blocks=5)
    learner = compare(lp.lopt(), model, batches, layers_of_language_model, losses, modules=3)
    shapes = [tuple(parameter.shape) for parameter in learner.heads["0"].parameters()]
    assert shapes == [(8,), (8,), (2, 8), (2,), (8, 2), (8,)]  # a quarter of the width


def test_the_decoder_of_tokens_starts_out_small() -> None:
    model, (batch, *_) = language_model()
    learner = lp.Learner(model, lp.lopt(hidden=6), modules=2, optimizer=sgd, sample=batch)
    _, narrow, _, wide = learner.heads["0"]["loss"].decoder
    bound = 0.1 * (6 / (8 + 6)) ** 0.5  # Xavier, uniform, gain 0.1
    for linear in (narrow, wide):
        assert not linear.bias.any()
        assert 0.8 * bound < linear.weight.abs().max() <= bound


def test_an_embedding_alone_has_nothing_to_reconstruct() -> None:
    model, (batch, *_) = language_model()
    with pytest.raises(lp.BadInput, match=r"module 0 is 'embed' alone, .* end the first module later"):
        lp.Learner(model, lp.lopt(), modules=5, optimizer=sgd, sample=batch)


def decoded_map(decoder: nn.Module, h: Tensor, size: torch.Size) -> Tensor:
    narrow, norm, _, wide = decoder.body
    h = functional.interpolate(h, size=size, mode="bilinear", align_corners=True)
    h = functional.conv2d(h, narrow.weight, narrow.bias, padding=1)
    h = (h - h.mean((0, 2, 3), keepdim=True)) / torch.sqrt(h.var((0, 2, 3), keepdim=True, unbiased=False) + norm.eps)
    h = functional.relu(h * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))
    return functional.conv2d(h, wide.weight, wide.bias, padding=1)


def test_reconstruction_of_maps() -> None:
    """Of the image by the first module; of larger and narrower maps where the module halves them."""

    def losses(connected: Connected) -> Losses:
        found = {3: task(connected)}
        for k in range(3):
            given, h = connected.outputs[k].detach(), connected.outputs[k + 1]
            decoded = decoded_map(connected.loss(k).parts[0].decoder, h, given.shape[2:])
            error = (decoded - given).square().mean()
            found[k] = 3 * error + 0.5 * cross_entropy(connected.aux(k)(h), connected.targets)
        return found

    model, batches = network("resnet14")
    rule = lp.pathak(reconstruction=3.0, task=0.5)
    learner = lp.Learner(model, rule, modules=4, optimizer=sgd, sample=batches[0])
    connected = Connected(learner, NETWORKS["resnet14"][1])
    for batch in batches:
        found = learner.step(batch)
        expected = connected.step(batch, losses)
        assert [loss.item() for loss in found] == pytest.approx([expected[k] for k in range(4)], abs=1e-9)
    # Running statistics of the decoders are not compared: the loop above writes BatchNorm out.
    for own, other in ((model, connected.model), (learner.heads, connected.heads)):
        for (name, a), b in zip(own.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_reconstruction_of_tokens_leaves_a_class_token_out() -> None:
    """The first module of a vision transformer gives back its patches, 4 of its 5 tokens."""
    model, (batch, *_) = network("timm_vit")
    learner = lp.Learner(model, lp.lopt(), modules=2, optimizer=sgd, sample=batch)
    connected = Connected(learner, NETWORKS["timm_vit"][1])
    (first, _) = learner.step(batch)
    connected._forward(batch[0])
    decoded = bottleneck(connected.loss(0).decoder, connected.outputs[1])
    assert decoded.shape[1] == 5
    expected = 10 * (decoded[:, 1:] - connected.inner["patch_embed"]).square().mean()
    assert first.item() == pytest.approx(expected.item(), abs=1e-9)


def test_reconstruction_of_maps_with_channels_last() -> None:
    """(N, H, W, C) as in Swin, where a module halves the map and doubles the channels."""

    class Turned(nn.Module):
        def __init__(self, conv: nn.Conv2d) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.movedim(3, 1)).movedim(1, 3)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 5, 3, padding=1)
            self.layers = nn.Sequential(Turned(nn.Conv2d(5, 6, 3, padding=1)), Turned(nn.Conv2d(6, 12, 2, stride=2)))
            self.head = nn.Linear(12, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers(self.stem(x).movedim(1, 3)).mean((1, 2)))

    torch.manual_seed(0)
    batch = batches_of((3, 8, 8), 10, count=1)[0]
    learner = lp.Learner(Network().double(), lp.lopt(), modules=2, optimizer=sgd, sample=batch)
    losses = [learner.step(batch)[0].item() for _ in range(10)]
    assert losses[-1] < losses[0]


def test_modules_that_change_the_kind_of_features_are_refused() -> None:
    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 2, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).flatten(2).mT

    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Flattened(), nn.Linear(8, 8), nn.Flatten(), nn.Linear(128, 10))
    batch = batches_of((3, 8, 8), 10, count=1)[0]
    with pytest.raises(lp.BadInput, match=r"module 1 turns .* into .*, which is of another kind"):
        lp.Learner(model.double(), lp.lopt(), modules=4, optimizer=sgd, sample=batch)


def test_bad_fields_are_all_named() -> None:
    with pytest.raises(lp.BadInput, match=r"(?s)weight=0.*hidden=-1"):
        lp.FeatureReconstruction(weight=0, hidden=-1)
    with pytest.raises(lp.BadInput, match=r"(?s)blocks=-1.*every=0"):
        lp.SharedReadout(blocks=-1, every=0)
    with pytest.raises(lp.BadInput, match="decay=2"):
        lp.NextLayerHead(decay=2)
