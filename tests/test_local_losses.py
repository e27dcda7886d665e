"""Local losses: against plain loops, in float32 whatever the precision, and in a learner."""

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

PIXELS = lp.Normalised()


def site(
    features: tuple[int, ...] = (6, 4, 4),
    image: tuple[int, ...] = (3, 8, 8),
    module: int = 0,
    modules: int = 4,
    normalised: lp.Normalised | None = PIXELS,
    outputs: tuple[int, ...] = (3,),
) -> lp.Site:
    """The end of a module in a network of which nothing else is known."""
    found = lp.layers_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.zeros(2, 2))
    known = {**vars(found), "input_shape": torch.Size((2, *image)), "output_shape": torch.Size((2, *outputs))}
    shape = torch.Size((2, *features))
    return lp.Site(module, modules, 0, lp.Layers(**known), shape, outputs[-1], normalised=normalised)


def batch(*features: int, samples: int = 7, classes: int = 3) -> tuple[Tensor, lp.Seen]:
    torch.manual_seed(0)
    seen = lp.Seen(torch.rand(samples, 3, 8, 8, dtype=torch.float64), torch.arange(samples) % classes)
    return torch.randn(samples, *features, dtype=torch.float64), seen


def made(loss: LossBuilder, at: lp.Site | None = None) -> lp.LocalLoss:
    torch.manual_seed(1)
    return loss(at or site()).double()


# --- contrast ---------------------------------------------------------------------------------------------------------------


def contrastive(rows: list[list[float]], labels: list[int], temperature: float) -> float:
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]
    total = 0.0
    for i, a in enumerate(unit):
        alike = {j: sum(map(float.__mul__, a, b)) / temperature for j, b in enumerate(unit) if j != i}
        log_all = math.log(sum(math.exp(value) for value in alike.values()))
        friends = [value - log_all for j, value in alike.items() if labels[j] == labels[i]]
        total -= sum(friends) / max(len(friends), 1)
    return total / len(rows)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 2, 2, 2, 2], [0, 1, 2, 3, 4, 5, 6]])
def test_contrastive(labels: list[int], temperature: float) -> None:
    """Also with samples that are alone in their class, which add nothing."""
    features, seen = batch(5)
    seen = seen._replace(targets=torch.tensor(labels))
    found = made(lp.Contrastive(temperature))(features, nn.Identity(), seen)
    assert found.item() == pytest.approx(contrastive(features.tolist(), labels, temperature), abs=1e-6)


def test_a_sample_alone_in_its_batch_has_no_contrast_and_a_gradient_of_zero() -> None:
    features = torch.randn(1, 5, requires_grad=True)
    loss = lp.Contrastive()(site())(features, nn.Identity(), lp.Seen(torch.zeros(1, 3, 8, 8), torch.zeros(1).long()))
    loss.backward()
    assert loss == 0
    assert not features.grad.any()


def test_contrast_looks_through_the_auxiliary_network() -> None:
    features, seen = batch(5)
    aux = nn.Linear(5, 2).double()
    found = made(lp.Contrastive())(features, aux, seen)
    expected = contrastive(aux(features).tolist(), seen.targets.tolist(), 0.07)
    assert found.item() == pytest.approx(expected, abs=1e-6)


# --- similarity -------------------------------------------------------------------------------------------------------------


def cosines(rows: list[list[float]]) -> list[list[float]]:
    centred = [[x - sum(row) / len(row) for x in row] for row in rows]
    unit = [[x / (math.sqrt(sum(y * y for y in row)) + 1e-8) for x in row] for row in centred]
    return [[max(-1, min(1, sum(map(float.__mul__, a, b)))) for b in unit] for a in unit]


def mismatch(rows: list[list[float]], wanted: list[list[float]]) -> float:
    pairs = [
        (a - b) ** 2 for x, y in zip(cosines(rows), cosines(wanted), strict=True) for a, b in zip(x, y, strict=True)
    ]
    return sum(pairs) / len(pairs)


def one_hot(labels: list[int]) -> list[list[float]]:
    return [[float(label == c) for c in range(3)] for label in labels]


def spread(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))


@pytest.mark.parametrize("features", [(6, 4, 4), (5, 6), (6,), (6, 1, 1), (3, 4, 4)])
def test_similarity(features: tuple[int, ...]) -> None:
    """Maps and tokens by their channels' standard deviations; vectors, single pixels and images of 3 channels as they are."""
    inputs, seen = batch(*features)
    loss = made(lp.Similarity(), site(features))
    projected = loss.projection(inputs)
    if features == (6, 4, 4):
        rows = [[spread(channel) for channel in sample] for sample in projected.flatten(2).tolist()]
    elif features == (5, 6):
        rows = [[spread(channel) for channel in sample] for sample in projected.transpose(1, 2).tolist()]
    else:
        rows = projected.flatten(1).tolist()
    expected = mismatch(rows, one_hot(seen.targets.tolist()))
    assert loss(inputs, nn.Identity(), seen).item() == pytest.approx(expected, abs=1e-6)
    assert [name for name, _ in loss.named_parameters()] == ["projection.weight"]


def test_similarity_of_probabilities() -> None:
    features, seen = batch(6)
    loss = made(lp.Similarity(), site((6,)))
    soft = functional.one_hot(seen.targets, 3).double()
    aux = nn.Identity()
    assert torch.equal(loss(features, aux, seen), loss(features, aux, seen._replace(targets=soft)))


# --- reconstruction ---------------------------------------------------------------------------------------------------------


def grown(maps: Tensor, height: int, width: int) -> Tensor:
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


def normed(maps: Tensor) -> Tensor:
    mean, variance = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), unbiased=False, keepdim=True)
    return ((maps - mean) / (variance + 1e-5).sqrt()).clamp(min=0)


def entropy(logits: Tensor, pixels: Tensor) -> float:
    chances = 1 / (1 + torch.exp(-logits))
    return -(pixels * chances.log() + (1 - pixels) * (1 - chances).log()).mean().item()


def conv(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(maps, weight, bias, padding=weight.shape[2] // 2)


def test_pixel_reconstruction() -> None:
    """Grow, 3x3 convolution, BatchNorm, ReLU, 3x3 convolution, sigmoid, cross-entropy with the de-normalised pixels."""
    features, seen = batch(6, 4, 4)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    normalised = (seen.inputs - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    loss = made(lp.PixelReconstruction(), site(normalised=lp.Normalised(mean, std)))
    w1, b1, _, _, w2, b2 = loss.parameters()
    expected = entropy(conv(normed(conv(grown(features, 8, 8), w1, b1)), w2, b2), seen.inputs)
    found = loss(features, nn.Identity(), seen._replace(inputs=normalised))
    assert found.item() == pytest.approx(expected, abs=1e-6)
    assert [w1.shape, w2.shape] == [(12, 6, 3, 3), (3, 12, 3, 3)]


def test_gradual_pixel_reconstruction() -> None:
    features, seen = batch(6, 4, 4)
    loss = made(lp.PixelReconstruction(gradual=True))
    w = list(loss.parameters())
    assert [tuple(p.shape) for p in w[::4]] == [(128, 6, 1, 1), (32, 128, 3, 3), (12, 32, 3, 3), (3, 12, 3, 3)]
    maps = grown(normed(conv(features, w[0], w[1])), 2, 2)
    maps = grown(normed(conv(maps, w[4], w[5])), 4, 4)
    maps = grown(normed(conv(maps, w[8], w[9])), 8, 8)
    expected = entropy(conv(maps, w[12], w[13]), seen.inputs)
    assert loss(features, nn.Identity(), seen).item() == pytest.approx(expected, abs=1e-6)


def test_reconstruction_of_patches_is_the_sum_of_four() -> None:
    """Each quarter of the features makes its quarter of the image, with a decoder of its own."""
    features, seen = batch(6, 4, 4)
    loss = made(lp.PixelReconstruction(patches=2))
    expected = 0.0
    for decoder, (i, j) in zip(loss.decoders, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        w1, b1, _, _, w2, b2 = decoder.parameters()
        maps = grown(features[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], 4, 4)
        image = seen.inputs[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        expected += entropy(conv(normed(conv(maps, w1, b1)), w2, b2), image)
    assert loss(features, nn.Identity(), seen).item() == pytest.approx(expected, abs=1e-6)


def test_pixels_are_kept_in_range() -> None:
    features, seen = batch(6, 4, 4)
    loss = made(lp.PixelReconstruction())
    beyond = seen._replace(inputs=torch.where(seen.inputs > 0.5, 1.5, -0.5))
    within = seen._replace(inputs=(seen.inputs > 0.5).double())
    assert torch.equal(loss(features, nn.Identity(), beyond), loss(features, nn.Identity(), within))


@pytest.mark.parametrize(
    ("loss", "at", "words"),
    [
        (lp.PixelReconstruction(), site(normalised=None), ["normalised=Normalised(mean, std)"]),
        (lp.PixelReconstruction(), site((6,)), ["makes images from maps"]),
        (lp.PixelReconstruction(), site(image=(20,)), ["inputs are (2, 20)"]),
        (lp.PixelReconstruction(patches=5), site(), ["fewer patches"]),
        (lp.PixelReconstruction(), site((6,), normalised=None), ["makes images", "normalised="]),
        (lp.PixelReconstruction(), site(normalised=lp.Normalised((0.5, 0.5))), ["3 channels"]),
        (lp.Contrastive(), site(outputs=(4, 3)), ["one label"]),
        (lp.Similarity(), site(outputs=(4, 3)), ["one label"]),
        (
            lp.Terms((lp.Term(lp.CrossEntropy(), 1, 0), lp.Term(lp.Similarity(), 2, 0))),
            site(module=2),
            ["Every weight"],
        ),
    ],
)
def test_sites_that_cannot_be_served_are_refused(loss: LossBuilder, at: lp.Site, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        loss(at)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: lp.PixelReconstruction(width=0, patches=0), "patches=0"),
        (lambda: lp.Contrastive(0), "temperature=0"),
        (lambda: lp.Term(lp.CrossEntropy(), -1), "first=-1"),
        (lambda: lp.Term(lp.CrossEntropy(), 1, math.nan), "last=nan"),
        (lambda: lp.Terms(()), "empty"),
        (lambda: lp.Terms((lp.CrossEntropy(),)), "where Term"),
        (lambda: lp.Terms(lp.Term()), "must be a tuple"),
        (lambda: lp.predsim(beta=1.5), "beta=1.5"),
    ],
)
def test_bad_values_are_refused(make: Callable[[], object], word: str) -> None:
    with pytest.raises(BadInput, match=word):
        make()


# --- precision --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [lp.CrossEntropy(), lp.Contrastive()])
def test_probabilities_are_no_targets_of_contrastive_losses(task: LossBuilder) -> None:
    images, soft = torch.rand(4, 3, 8, 8), torch.eye(10)[:4]
    rule = lp.Rule(aux=lp.Head(outputs=128), loss=lp.Contrastive())
    options = {"modules": 2, "optimizer": lambda params: torch.optim.SGD(params, lr=0.1), "sample": (images, soft)}
    with pytest.raises(lp.BadInput, match="Contrastive takes classes"):
        lp.Learner(lp.models.resnet8(), rule, task=task, **options).step((images, soft))


@pytest.mark.parametrize("loss", [lp.PixelReconstruction(), lp.Contrastive()])
def test_autocast_leaves_these_losses_in_float32(loss: LossBuilder) -> None:
    features, seen = batch(*((6, 4, 4) if isinstance(loss, lp.PixelReconstruction) else (6,)))
    features, seen = features.float(), seen._replace(inputs=seen.inputs.float())
    built = made(loss).float()
    plain = built(features, nn.Identity(), seen)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(built(features, nn.Identity(), seen), plain)
        low = built(features.bfloat16(), nn.Identity(), seen)
    assert low.dtype == torch.float32


@pytest.mark.parametrize("rule", [lp.predsim(), lp.infopro(contrast=True)], ids=["predsim", "infopro"])
def test_they_train_under_autocast(rule: lp.Rule) -> None:
    learner = learner_of(rule, precision="bf16")
    assert all(value.isfinite() for value in learner.step(example()))


# --- sums -------------------------------------------------------------------------------------------------------------------


class Weighed(lp.LocalLoss):
    """A constant."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, features: Tensor, aux: nn.Module, seen: lp.Seen) -> Tensor:
        return features.sum() * 0 + self.value


class Marked(Weighed):
    inlet, taps, attached = True, ("a", "b"), True


def total(loss: LossBuilder, at: lp.Site) -> float:
    features, seen = batch(2)
    return loss(at)(features, nn.Identity(), seen).item()


@pytest.mark.parametrize(
    ("module", "modules", "expected"),
    [
        (0, 5, 6 * 1 + 0 * 10 + 3 * 100),
        (1, 5, (6 * 2 + 3) / 3 + 2 / 3 * 10 + 300),  # a third of the way
        (3, 5, 3 * 1 + 2 * 10 + 300),
        (0, 2, 6 * 1 + 0 * 10 + 300),  # K = 2: the first weights
    ],
)
def test_weights_go_linearly_from_the_first_module_to_the_last_local_one(
    module: int, modules: int, expected: float
) -> None:
    """Three losses of 1, 10 and 100 with weights 6 -> 3, 0 -> 2 and 3."""
    weights = {1: (6, 3), 10: (0, 2), 100: (3, None)}
    terms = tuple(lp.Term(lambda site, loss=loss: Weighed(loss), *ends) for loss, ends in weights.items())
    assert total(lp.Terms(terms), site(module=module, modules=modules)) == pytest.approx(expected)


def test_a_term_without_weight_is_not_built() -> None:
    def refuse(site: lp.Site) -> lp.LocalLoss:
        raise AssertionError("built")

    terms = lp.Terms((lp.Term(lp.Similarity(), 1, 1), lp.Term(refuse, 0, 1)))
    assert sum(p.numel() for p in terms(site()).parameters()) == 9 * 6 * 6
    with pytest.raises(AssertionError, match="built"):
        terms(site(module=1))


def test_a_sum_asks_for_what_its_parts_ask_for() -> None:
    plain = lp.Terms()(site())
    marked = lp.Terms((lp.Term(lambda site: Marked(1)), lp.Term()))(site())
    assert (plain.inlet, plain.taps, plain.attached) == (False, (), False)
    assert (marked.inlet, marked.taps, marked.attached) == (True, ("a", "b"), True)


def test_a_sum_says_what_its_parts_find_wrong() -> None:
    (problem,) = lp.Terms()(site()).problems(torch.tensor([0, 9]), torch.Size((2, 3)))
    assert "Labels run from 0 to 9" in problem


# --- methods ----------------------------------------------------------------------------------------------------------------


def example() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(8, 1, 8, 8), torch.arange(8) % 4


def learner_of(rule: lp.Rule, **options: object) -> lp.Learner:
    torch.manual_seed(0)
    return lp.Learner(
        lp.models.resnet8(num_classes=4, in_chans=1),
        rule,
        modules=4,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.02),
        sample=example(),
        normalised=PIXELS,
        **options,
    )


FORMS = {
    "pred": lp.predsim(beta=0),
    "sim": lp.predsim(beta=1),
    "contrast": lp.infopro(contrast=True),
    "imagenet": lp.infopro(aux=lp.BottleneckHead((8, 8, 8)), decoder=lp.PixelReconstruction(gradual=True)),
    "patches": lp.infopro(decoder=lp.PixelReconstruction(patches=2)),
    "no label at first": lp.infopro(first=(5.0, 0.0), last=(0.0, 1.0)),
    "contsup, contrast": lp.contsup(aux=lp.Head(outputs=128), loss=lp.Contrastive()),
    "contsup, decoder": lp.contsup(loss=lp.infopro().loss),
}


@pytest.mark.parametrize("name", FORMS)
def test_published_forms_train_and_their_memory_is_predicted(name: str) -> None:
    learner = learner_of(FORMS[name])
    assert learner.memory(example()).peak_bytes > 0
    first = learner.step(example())
    for _ in range(4):
        last = learner.step(example())
    assert all(after < before for before, after in zip(first, last, strict=True))


def test_contrast_has_as_many_outputs_as_its_head_says() -> None:
    assert lp.infopro(contrast=True).aux == lp.Head(outputs=128)
    assert lp.infopro(contrast=True, aux=lp.Head(hidden=32)).aux == lp.Head(hidden=32, outputs=32)
    assert lp.infopro(contrast=True, aux=lp.Head(outputs=7)).aux == lp.Head(outputs=7)


def test_sim_alone_has_no_classifier() -> None:
    heads = learner_of(lp.predsim(beta=1)).heads
    assert all(not list(head["aux"].parameters()) for head in heads.values())
