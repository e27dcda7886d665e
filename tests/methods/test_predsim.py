"""PredSim: its similarity-matching loss against plain loops, and its pooled classifiers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.errors import BadInput
from tests.helpers.local_losses import (
    assert_trains_as_predicted,
    build_loss,
    compute_loss,
    make_images,
    make_learner,
    make_loss_inputs,
)
from tests.helpers.points import (
    build_head,
    count_parameters,
    list_leaf_types,
    make_point,
    make_point_at,
)

# --- similarity -----------------------------------------------------------------------------------

Rows = list[list[float]]


def cosines(rows: Rows) -> Rows:
    """The cosines of all pairs of rows, after each row's mean is subtracted."""
    centred = [[x - sum(row) / len(row) for x in row] for row in rows]
    unit = []
    for row in centred:
        length = math.sqrt(sum(y * y for y in row)) + 1e-8
        unit.append([x / length for x in row])
    return [[max(-1, min(1, sum(map(float.__mul__, a, b)))) for b in unit] for a in unit]


def mean_squared_difference(rows: Rows, wanted: Rows) -> float:
    """Of the cosines of rows and of wanted rows."""
    total, count = 0.0, 0
    for row, wanted_row in zip(cosines(rows), cosines(wanted), strict=True):
        for a, b in zip(row, wanted_row, strict=True):
            total, count = total + (a - b) ** 2, count + 1
    return total / count


def one_hot(labels: list[int]) -> Rows:
    return [[float(label == c) for c in range(3)] for label in labels]


def standard_deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))


def summarize(projected: Tensor) -> Rows:
    """The standard deviation of each channel of samples (N, C, positions)."""
    samples: list[list[list[float]]] = projected.tolist()
    return [[standard_deviation(channel) for channel in sample] for sample in samples]


@pytest.mark.parametrize("features", [(6, 4, 4), (5, 6), (6,), (6, 1, 1), (3, 4, 4)])
def test_similarity(features: tuple[int, ...]) -> None:
    """Maps and tokens by their channels' standard deviations.

    Vectors, single pixels and images of 3 channels are compared as they are.
    """
    maps, inputs = make_loss_inputs(*features)
    loss = build_loss(lp.SimilarityLoss(), make_point(*features, outputs=(3,)))
    projected = loss.get_submodule("projection")(maps)
    if features == (6, 4, 4):
        rows = summarize(projected.flatten(2))
    elif features == (5, 6):
        rows = summarize(projected.transpose(1, 2))
    else:
        rows = projected.flatten(1).tolist()
    expected = mean_squared_difference(rows, one_hot(inputs.targets.tolist()))
    assert compute_loss(loss, maps, inputs) == pytest.approx(expected, abs=1e-6)
    assert [name for name, _ in loss.named_parameters()] == ["projection.weight"]


def test_similarity_of_probabilities() -> None:
    features, inputs = make_loss_inputs(6)
    loss = build_loss(lp.SimilarityLoss(), make_point(6, outputs=(3,)))
    soft = inputs._replace(targets=functional.one_hot(inputs.targets, 3).double())
    aux = nn.Identity()
    assert torch.equal(loss(features, aux, inputs), loss(features, aux, soft))


def test_similarity_projects_the_channels_of_a_sequence() -> None:
    """Rows of (N, 8 channels, 50 steps) have a deviation for each channel, none for each step."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 8, 3, padding=1),
        nn.Conv1d(8, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(400, 3),
    )
    point = make_point_at(model, torch.zeros(2, 2, 50), 0)
    loss, features = lp.SimilarityLoss()(point), torch.randn(6, 8, 50)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    weight = loss.get_parameter("projection.weight")
    projected = torch.einsum("oc,nct->not", weight, features)
    rows, targets = projected.std(2), functional.one_hot(labels, point.outputs).float()
    centred = [z - z.mean(1, keepdim=True) for z in (rows, targets)]
    units = [functional.normalize(z) for z in centred]
    expected = (units[0] @ units[0].T - units[1] @ units[1].T).square().mean()
    value = loss(features, nn.Identity(), lp.LossInputs(features, labels))
    torch.testing.assert_close(value, expected)


def test_similarity_needs_one_label_per_sample() -> None:
    with pytest.raises(BadInput, match="one label"):
        lp.SimilarityLoss()(make_point(6, 4, 4, outputs=(4, 3)))


# --- pooled classifiers ---------------------------------------------------------------------------

POOLED = [  # channels, side, features -> sides after the pool
    (128, 32, 2048, (4, 4)),
    (256, 32, 2048, (2, 4)),
    (256, 16, 2048, (2, 4)),
    (512, 16, 2048, (2, 2)),
    (512, 8, 2048, (2, 2)),
    (512, 4, 2048, (2, 2)),
    (16, 32, 512, (4, 8)),
    (32, 16, 512, (4, 4)),
    (64, 8, 512, (2, 4)),
    (64, 8, 32, (1, 1)),  # more channels than features: an average of all
]


@pytest.mark.parametrize(("width", "side", "features", "after"), POOLED)
def test_pooled_heads(width: int, side: int, features: int, after: tuple[int, int]) -> None:
    aux = lp.PooledHead(features)
    head = build_head(aux, make_point(width, side, side))
    kernel = aux.kernel(torch.Size((2, width, side, side)))
    assert (side // kernel[0], side // kernel[1]) == after
    assert count_parameters(head) == width * after[0] * after[1] * 10 + 10
    classifier = head[-1]
    assert isinstance(classifier, nn.Linear)
    assert not classifier.weight.any()
    assert classifier.bias.any()


def test_pooled_heads_pad_both_sides_with_zeros() -> None:
    """Six rows in windows of four: two rows of zeros come before them, and two after.

    A column is one window, of two rows of zeros and two of ones; the next holds the last four rows.
    """
    head = build_head(lp.PooledHead(2 * 6), make_point(2, 6, 6))
    pooled = head[0](torch.ones(1, 2, 6, 6))
    assert pooled[0, 0].tolist() == [[0.5, 0.5, 0.5], [1, 1, 1]]


def test_pooled_heads_average_what_the_official_code_averages() -> None:
    """By hand: rows 1, 2, 3 of a 3x3 map in one 4x4 window that begins two rows before it."""
    head = build_head(lp.PooledHead(1), make_point(1, 3, 3))
    rows = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1).expand(1, 1, 3, 3)
    assert head[0](rows).flatten().tolist() == [(1 + 1 + 2 + 2) / 16]


@pytest.mark.parametrize(
    ("width", "side", "features", "kernel", "padding"),
    [
        (256, 28, 1024, (16, 16), (8, 8)),  # VGG8b: MNIST
        (512, 14, 1024, (16, 8), (8, 4)),
        (256, 48, 2048, (32, 16), (16, 0)),  # VGG8b: STL-10
        (512, 12, 2048, (8, 8), (4, 4)),
        (16, 96, 512, (32, 16), (0, 0)),  # ResNet-32: STL-10, AugLocal
        (64, 24, 512, (16, 8), (8, 0)),
    ],
)
def test_pools_of_the_maps_of_the_papers_networks(
    width: int, side: int, features: int, kernel: tuple[int, int], padding: tuple[int, int]
) -> None:
    head = build_head(lp.PooledHead(features), make_point(width, side, side))
    pool = head[0]
    assert isinstance(pool, nn.AvgPool2d)
    assert (pool.kernel_size, pool.padding) == (kernel, padding)
    assert head(torch.zeros(1, width, side, side)).shape == (1, 10)


def test_initial_weights_of_auglocals_baseline() -> None:
    """PyTorch's own for the classifier, N(0, 2 / (9 * width)) for the convolution of the loss."""
    torch.manual_seed(0)
    point = make_point(64, 8, 8)
    *_, classifier = build_head(lp.PooledHead(512, zeros=False), point)
    assert isinstance(classifier, nn.Linear)
    assert classifier.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 512), rel=0.05)
    own, redrawn = (
        lp.SimilarityLoss(redraw)(point).get_parameter("projection.weight")
        for redraw in (False, True)
    )
    assert redrawn.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert own.std().item() == pytest.approx(1 / math.sqrt(3 * 9 * 64), rel=0.02)


def test_pooled_heads_of_vectors_are_linear() -> None:
    assert list_leaf_types(lp.PooledHead(8)(make_point(16))) == ["Pool", "Linear"]


def test_pooled_heads_without_features_are_refused() -> None:
    with pytest.raises(BadInput, match="features=0"):
        lp.PooledHead(0)


# --- the method -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0, 1], ids=["pred", "sim"])
def test_published_forms_train_and_their_memory_is_predicted(beta: float) -> None:
    assert_trains_as_predicted(lp.predsim(beta=beta))


def test_it_trains_under_autocast() -> None:
    learner = make_learner(lp.predsim(), precision="bf16")
    assert all(value.isfinite() for value in learner.step(make_images()))


def test_sim_alone_has_no_classifier() -> None:
    heads = make_learner(lp.predsim(beta=1)).heads
    assert heads
    for k in heads:
        assert not list(heads.get_submodule(f"{k}.aux").parameters())


def test_a_share_above_1_is_refused() -> None:
    with pytest.raises(BadInput, match=r"beta=1\.5"):
        lp.predsim(beta=1.5)
