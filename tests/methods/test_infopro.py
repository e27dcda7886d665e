"""InfoPro: contrast and reconstruction against plain loops, its head for ImageNet, the method."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.errors import BadInput
from localprop.rule.losses import LossBuilder
from tests.helpers.local_losses import (
    assert_trains_as_predicted,
    build_loss,
    compute_loss,
    make_images,
    make_learner,
    make_loss_inputs,
)
from tests.helpers.points import build_head, count_parameters, list_convs, make_point
from tests.helpers.reference import sgd

PIXELS = lp.Normalization()


def make_map_point(normalization: lp.Normalization | None = PIXELS) -> lp.AttachPoint:
    """The end of a module with 6 channels on maps of 4x4; images have 3 channels and 8x8 pixels."""
    return make_point(6, 4, 4, modules=4, outputs=(3,), normalization=normalization)


# --- contrast -------------------------------------------------------------------------------------


def contrastive(rows: list[list[float]], labels: list[int], temperature: float) -> float:
    unit = []
    for row in rows:
        length = math.sqrt(sum(y * y for y in row))
        unit.append([x / length for x in row])
    total = 0.0
    for i, a in enumerate(unit):
        similarities = {}
        for j, b in enumerate(unit):
            if j != i:
                similarities[j] = sum(map(float.__mul__, a, b)) / temperature
        log_all = math.log(sum(math.exp(value) for value in similarities.values()))
        positives = [v - log_all for j, v in similarities.items() if labels[j] == labels[i]]
        total -= sum(positives) / max(len(positives), 1)
    return total / len(rows)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 2, 2, 2, 2], [0, 1, 2, 3, 4, 5, 6]]
)
def test_contrastive(labels: list[int], temperature: float) -> None:
    """Also with samples that are alone in their class, which add nothing."""
    features, inputs = make_loss_inputs(5)
    inputs = inputs._replace(targets=torch.tensor(labels))
    loss = build_loss(lp.ContrastiveLoss(temperature), make_map_point())
    expected = contrastive(features.tolist(), labels, temperature)
    assert compute_loss(loss, features, inputs) == pytest.approx(expected, abs=1e-6)


def test_a_sample_alone_in_its_batch_has_no_contrast_and_a_gradient_of_zero() -> None:
    features = torch.randn(1, 5, requires_grad=True)
    inputs = lp.LossInputs(torch.zeros(1, 3, 8, 8), torch.zeros(1).long())
    loss = lp.ContrastiveLoss()(make_map_point())(features, nn.Identity(), inputs)
    loss.backward()
    assert loss == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_contrast_compares_the_outputs_of_the_auxiliary_network() -> None:
    features, inputs = make_loss_inputs(5)
    aux = nn.Linear(5, 2).double()
    loss = build_loss(lp.ContrastiveLoss(), make_map_point())
    expected = contrastive(aux(features).tolist(), inputs.targets.tolist(), 0.07)
    assert compute_loss(loss, features, inputs, aux) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("task", [lp.CrossEntropy(), lp.ContrastiveLoss()])
def test_probabilities_are_no_targets_of_contrastive_losses(task: LossBuilder) -> None:
    images, soft = torch.rand(4, 3, 8, 8), torch.eye(10)[:4]
    rule = lp.Rule(aux=lp.Head(outputs=128), loss=lp.ContrastiveLoss())
    with pytest.raises(lp.BadInput, match="ContrastiveLoss takes classes"):
        lp.Learner(
            lp.models.resnet8(), rule, modules=2, optimizer=sgd, sample=(images, soft), task=task
        ).step((images, soft))


# --- reconstruction -------------------------------------------------------------------------------


def resize(maps: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, corners on corners."""
    result = torch.zeros(*maps.shape[:2], height, width, dtype=maps.dtype)
    for i in range(height):
        for j in range(width):
            y, x = i * (maps.shape[2] - 1) / (height - 1), j * (maps.shape[3] - 1) / (width - 1)
            for a in range(maps.shape[2]):
                for b in range(maps.shape[3]):
                    share = max(0, 1 - abs(y - a)) * max(0, 1 - abs(x - b))
                    result[:, :, i, j] += share * maps[:, :, a, b]
    return result


def norm_and_relu(maps: Tensor) -> Tensor:
    mean = maps.mean((0, 2, 3), keepdim=True)
    variance = maps.var((0, 2, 3), unbiased=False, keepdim=True)
    return ((maps - mean) / (variance + 1e-5).sqrt()).clamp(min=0)


def cross_entropy(logits: Tensor, pixels: Tensor) -> float:
    p = 1 / (1 + torch.exp(-logits))
    return -(pixels * p.log() + (1 - pixels) * (1 - p).log()).mean().item()


def conv(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(maps, weight, bias, padding=weight.shape[2] // 2)


def test_pixel_reconstruction() -> None:
    """Resize, 3x3 convolution, BatchNorm, ReLU, 3x3 convolution, sigmoid.

    Then the cross-entropy with the pixels that the inputs were made from.
    """
    features, inputs = make_loss_inputs(6, 4, 4)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    pixels = inputs.network_input
    normalized = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    loss = build_loss(lp.PixelReconstruction(), make_map_point(lp.Normalization(mean, std)))
    w1, b1, _, _, w2, b2 = loss.parameters()
    maps = norm_and_relu(conv(resize(features, 8, 8), w1, b1))
    expected = cross_entropy(conv(maps, w2, b2), pixels)
    found = compute_loss(loss, features, inputs._replace(network_input=normalized))
    assert found == pytest.approx(expected, abs=1e-6)
    assert [w1.shape, w2.shape] == [(12, 6, 3, 3), (3, 12, 3, 3)]


def test_gradual_pixel_reconstruction() -> None:
    features, inputs = make_loss_inputs(6, 4, 4)
    loss = build_loss(lp.PixelReconstruction(gradual=(128, 32)), make_map_point())
    w = list(loss.parameters())
    assert [tuple(p.shape) for p in w[::4]] == [
        (128, 6, 1, 1),
        (32, 128, 3, 3),
        (12, 32, 3, 3),
        (3, 12, 3, 3),
    ]
    maps = resize(norm_and_relu(conv(features, w[0], w[1])), 2, 2)
    maps = resize(norm_and_relu(conv(maps, w[4], w[5])), 4, 4)
    maps = resize(norm_and_relu(conv(maps, w[8], w[9])), 8, 8)
    expected = cross_entropy(conv(maps, w[12], w[13]), inputs.network_input)
    assert compute_loss(loss, features, inputs) == pytest.approx(expected, abs=1e-6)


def test_a_gradual_decoder_of_more_steps_begins_with_smaller_maps() -> None:
    """MAN's at 1,024 channels: convolutions at 1, 2, 4, 8 and 16 times the map's side."""
    point = make_point(6, 4, 4, image=(3, 64, 64), outputs=(3,), normalization=PIXELS)
    loss = build_loss(lp.PixelReconstruction(gradual=(192, 64, 32)), point)
    sides: list[int] = []
    for conv in list_convs(loss):
        conv.register_forward_hook(lambda _, args, output: sides.append(output.shape[-1]))
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    inputs = lp.LossInputs(images, torch.zeros(2, dtype=torch.int64))
    loss(torch.randn(2, 6, 4, 4, dtype=torch.float64), nn.Identity(), inputs)
    assert sides == [4, 8, 16, 32, 64]


def test_reconstruction_of_patches_is_the_sum_of_four() -> None:
    """Each quarter of the features makes its quarter of the image, with a decoder of its own."""
    features, inputs = make_loss_inputs(6, 4, 4)
    loss = build_loss(lp.PixelReconstruction(patches=2), make_map_point())
    decoders = loss.get_submodule("decoders").children()
    expected = 0.0
    for decoder, (i, j) in zip(decoders, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        w1, b1, _, _, w2, b2 = decoder.parameters()
        maps = resize(features[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], 4, 4)
        image = inputs.network_input[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        expected += cross_entropy(conv(norm_and_relu(conv(maps, w1, b1)), w2, b2), image)
    assert compute_loss(loss, features, inputs) == pytest.approx(expected, abs=1e-6)


def test_pixels_are_kept_in_range() -> None:
    features, inputs = make_loss_inputs(6, 4, 4)
    loss = build_loss(lp.PixelReconstruction(), make_map_point())
    bright = inputs.network_input > 0.5
    beyond = inputs._replace(network_input=torch.where(bright, 1.5, -0.5))
    within = inputs._replace(network_input=bright.double())
    aux = nn.Identity()
    assert torch.equal(loss(features, aux, beyond), loss(features, aux, within))


@pytest.mark.parametrize(
    ("loss", "point", "words"),
    [
        (
            lp.PixelReconstruction(),
            make_map_point(normalization=None),
            ["normalization=Normalization(mean, std)"],
        ),
        (
            lp.PixelReconstruction(),
            make_point(6, normalization=PIXELS),
            ["makes images from maps"],
        ),
        (
            lp.PixelReconstruction(),
            make_point(6, 4, 4, image=(20,), normalization=PIXELS),
            ["inputs are (2, 20)"],
        ),
        (lp.PixelReconstruction(patches=5), make_map_point(), ["fewer patches"]),
        (lp.PixelReconstruction(), make_point(6), ["makes images", "normalization="]),
        (
            lp.PixelReconstruction(),
            make_map_point(lp.Normalization((0.5, 0.5))),
            ["3 channels"],
        ),
        (lp.ContrastiveLoss(), make_point(6, 4, 4, outputs=(4, 3)), ["one label"]),
    ],
)
def test_modules_where_a_loss_is_impossible_are_refused(
    loss: LossBuilder, point: lp.AttachPoint, words: list[str]
) -> None:
    with pytest.raises(BadInput) as caught:
        loss(point)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: lp.PixelReconstruction(width=0, patches=0), "patches=0"),
        (lambda: lp.PixelReconstruction(gradual=(8, 0)), "each number must be 1 or more"),
        (lambda: lp.ContrastiveLoss(0), "temperature=0"),
        (lambda: lp.BottleneckHead((8,)), "2 or more"),
    ],
)
def test_bad_values_are_refused(make: Callable[[], object], word: str) -> None:
    with pytest.raises(BadInput, match=word):
        make()


# --- the auxiliary network for ImageNet -----------------------------------------------------------


def test_bottleneck_head_of_resnet101() -> None:
    head = build_head(lp.BottleneckHead(), make_point(512, 28, 28, outputs=(1000,)))
    convs = 512 * 128 + 9 * 128 * 256 + 9 * 256 * 512 + 512 * 2048
    assert count_parameters(head) == convs + 2 * (128 + 256 + 512 + 2048) + 2_049_000
    assert head[:-2](torch.zeros(1, 512, 28, 28)).shape == (1, 2048, 7, 7)
    with pytest.raises(BadInput, match="aux=Head"):
        lp.BottleneckHead()(make_point(512))


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "shape"), [(lp.PixelReconstruction(), (6, 4, 4)), (lp.ContrastiveLoss(), (6,))]
)
def test_autocast_leaves_these_losses_in_float32(loss: LossBuilder, shape: tuple[int, ...]) -> None:
    features, inputs = make_loss_inputs(*shape)
    features, inputs = features.float(), inputs._replace(network_input=inputs.network_input.float())
    built = build_loss(loss, make_map_point()).float()
    plain = built(features, nn.Identity(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(built(features, nn.Identity(), inputs), plain)
        low = built(features.bfloat16(), nn.Identity(), inputs)
    assert low.dtype == torch.float32


def test_it_trains_under_autocast() -> None:
    learner = make_learner(lp.infopro(contrast=True), precision="bf16")
    assert all(value.isfinite() for value in learner.step(make_images()))


# --- the method -----------------------------------------------------------------------------------

FORMS = {
    "contrast": lp.infopro(contrast=True),
    "imagenet": lp.infopro(
        aux=lp.BottleneckHead((8, 8, 8)), decoder=lp.PixelReconstruction(gradual=(128, 32))
    ),
    "patches": lp.infopro(decoder=lp.PixelReconstruction(patches=2)),
    "no label at first": lp.infopro(first=(5.0, 0.0), last=(0.0, 1.0)),
    "contsup, contrast": lp.contsup(aux=lp.Head(outputs=128), loss=lp.ContrastiveLoss()),
    "contsup, decoder": lp.contsup(loss=lp.infopro().loss),
}


@pytest.mark.parametrize("name", FORMS)
def test_published_forms_train_and_their_memory_is_predicted(name: str) -> None:
    assert_trains_as_predicted(FORMS[name])


def test_contrast_has_as_many_outputs_as_its_head_says() -> None:
    assert lp.infopro(contrast=True).aux == lp.Head(outputs=128)
    assert lp.infopro(contrast=True, aux=lp.Head(hidden=32)).aux == lp.Head(hidden=32, outputs=32)
    assert lp.infopro(contrast=True, aux=lp.Head(outputs=7)).aux == lp.Head(outputs=7)
