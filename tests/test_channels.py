"""Which dimension of features holds the channels: of images that are not square, of sequences, of volumes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision
from test_heads import of
from torch import nn

import localprop as lp
from localprop.errors import BadInput
from localprop.rule.auxiliary import AuxBuilder


@pytest.mark.parametrize("image", [(64, 100), (100, 64), (30, 47), (64, 64)])
def test_heads_on_images_that_are_not_square(image: tuple[int, int]) -> None:
    """32 channels on maps of 32x50: no width of 50 anywhere."""
    model, sample = lp.models.resnet14(), torch.zeros(2, 3, *image)
    aux: AuxBuilder
    for aux in (lp.Head(), lp.Head(0, 1), lp.MlpSrHead(), lp.ConvHead(), lp.OneConvHead(), lp.SampledLayers(2)):
        for layer in range(6):
            here = of(model, sample, layer)
            assert here.width() == (16, 16, 16, 32, 32, 64)[layer]
            assert aux(here)(torch.zeros(here.features)).shape == (2, 10)


@pytest.mark.parametrize("image", [(64, 64), (64, 96), (96, 64)])
def test_channels_that_come_last(image: tuple[int, int]) -> None:
    """Swin: 96 channels behind maps of a quarter of the image's sides, and twice as many behind those of an eighth."""
    model = torchvision.models.SwinTransformer([2, 2], 96, [1, 1, 1], [3, 3, 3], [2, 2], num_classes=10)
    layers = lp.layers_of(model, torch.zeros(2, 3, *image))
    for layer, shape in enumerate(layers.shapes):
        here = of(model, torch.zeros(2, 3, *image), layer)
        assert (here.dimension(), here.width(), here.is_map()) == (3, shape[3], False)
        assert shape[3] % 96 == 0
        assert lp.Head()(here)(torch.zeros(shape)).shape == (2, 10)


DEEP = [
    ((6, 40), nn.Sequential(*[nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.ReLU()) for _ in range(3)])),
    ((6, 40), nn.Sequential(nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 6, 1))),
    ((6, 4, 12, 12), nn.Sequential(nn.Conv3d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 6, 3, padding=1))),
]


@pytest.mark.parametrize(("shape", "body"), DEEP)
def test_channels_of_one_and_of_three_dimensions_come_first(shape: tuple[int, ...], body: nn.Module) -> None:
    """The gradient of an average over all but the channels is the same at every position."""
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(6 * torch.Size(shape[1:]).numel(), 10))
    here = of(model, torch.zeros(2, *shape), 0)
    assert (here.width(), here.dimension()) == (6, 1)
    for aux in (lp.Head(0, 1), lp.MlpSrHead(), lp.PooledHead(), lp.OneConvHead()):
        features = torch.randn(here.features, requires_grad=True)
        aux(here).eval()(features)[:, 0].sum().backward()
        gradient = features.grad.flatten(2)  # type: ignore[union-attr]
        torch.testing.assert_close(gradient, gradient[:, :, :1].expand_as(gradient))


def test_channels_of_five_dimensions_that_nobody_can_find_are_refused() -> None:
    body = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(6 * 8, 10))
    with pytest.raises(BadInput, match="no Conv3d or BatchNorm3d says"):
        lp.Head()(of(model, torch.zeros(2, 2, 2, 2, 6), 0))


def test_features_that_are_decoded_on_images_that_are_not_square() -> None:
    """From 32 channels on maps of 32x50 to 16 on maps of 64x100."""
    here = replace(of(lp.models.resnet14(), torch.zeros(2, 3, 64, 100), 3), start=3)
    convs = [part for part in lp.FeatureReconstruction()(here).modules() if isinstance(part, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == [(32, 8), (8, 16)]


def test_sequences_whose_channels_come_first_are_not_decoded() -> None:
    shape, body = DEEP[0]
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(240, 10))
    with pytest.raises(BadInput, match="channels come first"):
        lp.FeatureReconstruction()(of(model, torch.zeros(2, *shape), 1))


def test_similarity_projects_the_channels_of_a_sequence() -> None:
    """Of (N, 8 channels, 50 steps) the rows that are compared have a deviation for each channel, none for each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(400, 3))
    here = of(model, torch.zeros(2, 2, 50), 0)
    loss, features, labels = lp.Similarity()(here), torch.randn(6, 8, 50), torch.tensor([0, 1, 2, 0, 1, 2])
    projected = torch.einsum("oc,nct->not", loss.projection.weight, features)
    rows, wanted = projected.std(2), nn.functional.one_hot(labels, here.outputs).float()
    cosines = [nn.functional.normalize(z - z.mean(1, keepdim=True)) for z in (rows, wanted)]
    expected = (cosines[0] @ cosines[0].T - cosines[1] @ cosines[1].T).square().mean()
    torch.testing.assert_close(loss(features, nn.Identity(), lp.Seen(features, labels)), expected)
