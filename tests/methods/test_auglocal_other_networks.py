"""AugLocal's auxiliary networks beyond the CIFAR ResNets: ImageNet, VGG, MLPs, transformers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import localprop as lp
from localprop.errors import BadInput
from localprop.methods.auglocal import Bottleneck
from tests.helpers.points import (
    build_head,
    count_parameters,
    list_convs,
    list_leaf_types,
    make_point_at,
)

# --- residual blocks ------------------------------------------------------------------------------


def test_sampled_bottlenecks_of_resnet50() -> None:
    """Stem -> like layer 8 (1024 channels) -> like layer 16 (2048): 256 and 512 inside."""
    with torch.device("meta"):
        point = make_point_at(torchvision.models.resnet50(), torch.zeros(2, 3, 64, 64), 0)
        head = lp.SampledLayers(2, 0, "bottleneck")(point)
    blocks = [module for module in head.modules() if isinstance(module, Bottleneck)]
    convs = [list_convs(block.body) for block in blocks]
    widths = [[conv.out_channels for conv in of_block] for of_block in convs]
    assert widths == [[256, 256, 1024], [512, 512, 2048]]
    assert [of_block[1].stride for of_block in convs] == [(2, 2), (2, 2)]
    assert list_leaf_types(head)[-2:] == ["Pool", "Linear"]


@pytest.mark.parametrize(("narrow", "wide", "stride"), [(64, 256, 1), (256, 512, 2), (512, 512, 1)])
def test_bottlenecks_are_torchvisions(narrow: int, wide: int, stride: int) -> None:
    torch.manual_seed(0)
    ours = Bottleneck(narrow, wide, stride)
    down = nn.Sequential(nn.Conv2d(narrow, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
    same = narrow == wide and stride == 1
    theirs = torchvision.models.resnet.Bottleneck(narrow, wide // 4, stride, None if same else down)
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        a.data = b.data
    x = torch.randn(2, narrow, 8, 8)
    assert torch.equal(ours(x), theirs(x))


def test_odd_sides_are_halved_too() -> None:
    """28 -> 14 -> 7 -> 4 pixels: three strides of 2."""
    with torch.device("meta"):
        point = make_point_at(torchvision.models.resnet34(), torch.zeros(2, 3, 112, 112), 0)
        head = build_head(lp.SampledLayers(16, 0), point)
    blocks = [module for module in head.modules() if isinstance(module, lp.models.BasicBlock)]
    assert (point.features[2], point.layers.shapes[-1][2]) == (28, 4)
    assert [block.conv1.stride[0] for block in blocks].count(2) == 3
    assert head[:16](torch.zeros(point.features, device="meta")).shape[2:] == (4, 4)


def test_the_imagenet_form_has_no_norm_before_the_linear_layer() -> None:
    point = make_point_at(lp.models.resnet14(), torch.zeros(2, 3, 32, 32), 3)
    cifar = list_leaf_types(lp.auglocal(depth=1).aux(point))
    imagenet = list_leaf_types(lp.auglocal(depth=1, joined=False).aux(point))
    assert cifar[-3:] == ["Pool", "BatchNorm1d", "Linear"]
    assert imagenet[-2:] == ["Pool", "Linear"]
    assert "BatchNorm1d" not in imagenet


# --- VGG ------------------------------------------------------------------------------------------


def make_vgg13_point(layer: int) -> lp.AttachPoint:
    return make_point_at(torchvision.models.vgg13_bn(), torch.zeros(2, 3, 64, 64), layer)


def test_sampled_convolutions_of_vgg13() -> None:
    """Of its 10 convolutions those after the first: 0 + 4.5 -> 4 (256 channels) and 9 (512)."""
    with torch.device("meta"):
        head = lp.SampledLayers(2, 0, "conv")(make_vgg13_point(0))
    convs = 9 * 64 * 256 + 3 * 256 + 9 * 256 * 512 + 3 * 512
    assert count_parameters(head) == convs + 2 * (512 * 512 + 3 * 512) + 513_000
    pool_and_conv = ["MaxPool2d", "Conv2d", "BatchNorm2d", "ReLU"]
    linear = ["Linear", "BatchNorm1d", "ReLU"]
    body = [*pool_and_conv, *pool_and_conv, "Flatten", "AdaptiveAvgPool1d"]
    assert list_leaf_types(head) == [*body, *linear, *linear, "Linear"]


def test_the_last_sampled_convolutions_keep_their_map() -> None:
    """From 512 to 512 channels VGG halves the map, its heads do not.

    The classifier's layers are not sampled.
    """
    with torch.device("meta"):
        head = lp.SampledLayers(4, 0, "conv")(make_vgg13_point(7))
    assert list_leaf_types(head)[:6] == ["Conv2d", "BatchNorm2d", "ReLU"] * 2
    assert "MaxPool2d" not in list_leaf_types(head)


# --- copies ---------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """Tokens to an output for each."""

    def __init__(self, width: int = 8, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True)
            for _ in range(layers)
        )
        self.out = nn.Linear(width, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.out(x)
        return logits


def build_mlp() -> nn.Module:
    return lp.models.mlp(8, (6, 6, 6, 6))


def build_vit() -> nn.Module:
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=4, num_classes=10
    )
    return model


TOKENS = torch.zeros(2, 5, dtype=torch.int64)
COPIED = [  # model, sample, layer, the class of the copies, how many, outputs of the head
    (build_mlp, torch.zeros(2, 8), 0, nn.Sequential, 2, (2, 10)),
    (build_mlp, torch.zeros(2, 8), 3, nn.Sequential, 0, (2, 10)),
    (build_vit, torch.zeros(2, 3, 32, 32), 0, timm.models.vision_transformer.Block, 2, (2, 10)),
    (LanguageModel, TOKENS, 0, nn.TransformerEncoderLayer, 2, (2, 5, 11)),
]


@pytest.mark.parametrize("unit", ["basic", "copy"])
@pytest.mark.parametrize(("build", "sample", "layer", "copied", "count", "outputs"), COPIED)
def test_copies_of_layers(
    build: Callable[[], nn.Module],
    sample: Tensor,
    layer: int,
    copied: type[nn.Module],
    count: int,
    outputs: tuple[int, ...],
    unit: str,
) -> None:
    """Their weights are new: none is a weight of the network, nor equal to one."""
    torch.manual_seed(0)
    model = build()
    point = make_point_at(model, sample, layer)
    head = build_head(lp.SampledLayers(2, 0, unit), point)
    *copies, _, _ = head
    assert [type(copy) for copy in copies] == [copied] * count
    assert head(torch.randn(point.features)).shape == outputs
    originals = [p for p in model.parameters() if p.ndim > 1]
    for new in (p for p in head.parameters() if p.ndim > 1):
        assert not any(p.shape == new.shape and torch.equal(p, new) for p in originals)


def test_copies_of_convolutional_blocks_that_keep_their_shape() -> None:
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(5)]
    model = nn.Sequential(nn.Sequential(*blocks, nn.Flatten()), nn.Linear(4 * 36, 3))
    head = lp.SampledLayers(3, 0, "copy")(make_point_at(model, torch.zeros(2, 4, 6, 6), 0))
    assert list_leaf_types(head) == ["Conv2d", "ReLU"] * 3 + ["Pool", "Linear"]


def test_layers_as_wide_as_the_outputs_are_copied() -> None:
    """Only the last layer can be the classifier, and of a language model the last block is none."""
    mlp = make_point_at(lp.models.mlp(10, (10, 10, 10, 10)), torch.zeros(2, 10), 0)
    # Of five layers those between the first and the classifier.
    assert len(build_head(lp.SampledLayers(9, 0), mlp)) == 3 + 2
    model = LanguageModel(width=12)
    model.out = nn.Linear(12, 12)
    point = make_point_at(model, TOKENS, 0)
    assert len(build_head(lp.SampledLayers(9, 0), point)) == len(point.layers) - 1 + 2


def test_copies_that_do_not_fit_are_refused() -> None:
    point = make_point_at(lp.models.mlp(8, (7, 6, 5, 4)), torch.zeros(2, 8), 0)
    with pytest.raises(BadInput, match="keep their shape"):
        lp.SampledLayers(2, 0)(point)


def test_a_layer_of_several_modules_is_not_copied() -> None:
    """The first block of a ViT has the class token and positions as well."""
    point = make_point_at(build_vit(), torch.zeros(2, 3, 32, 32), 0)
    with pytest.raises(BadInput, match="several modules"):
        lp.SampledLayers(4, 0)(point)


def test_bad_values_are_refused_together() -> None:
    with pytest.raises(BadInput, match=r"(?s)depth=0.*pyramid=2\.0.*basic, bottleneck, conv, copy"):
        lp.SampledLayers(0, 2.0, "block")


# --- training -------------------------------------------------------------------------------------

TRAINED = [
    (build_mlp, torch.zeros(4, 8)),
    (LanguageModel, TOKENS),
]


@pytest.mark.parametrize(("build", "sample"), TRAINED)
def test_layer_wise_auglocal_trains_networks_without_maps(
    build: Callable[[], nn.Module], sample: Tensor
) -> None:
    torch.manual_seed(0)
    if sample.is_floating_point():
        inputs, targets = torch.randn(sample.shape), torch.arange(4)
    else:
        inputs = targets = torch.arange(10).reshape(2, 5)
    learner = lp.Learner(
        build(),
        lp.auglocal(2),
        modules=5,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        sample=(inputs, targets),
    )
    first = learner.step((inputs, targets))
    for _ in range(20):
        last = learner.step((inputs, targets))
    assert all(b < a for a, b in zip(first, last, strict=True))
