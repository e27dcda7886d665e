"""Auxiliary networks: what they are made of, counted by hand from the papers' code, and on which features they stand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import localprop as lp
from localprop.errors import BadInput
from localprop.rule.auxiliary import AuxBuilder
from localprop.rule.sampled import Bottleneck


def site(*features: int, outputs: tuple[int, ...] = (10,)) -> lp.Site:
    """The end of a first module with features of this shape, in a network of which nothing else is known."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    found = lp.layers_of(model, torch.zeros(2, 2))
    shape = torch.Size((2, *features))
    known = {**vars(found), "shapes": (shape, shape), "output_shape": torch.Size((2, *outputs))}
    return lp.Site(0, 2, 0, lp.Layers(**known), shape, outputs[-1])


def of(model: nn.Module, sample: Tensor, layer: int) -> lp.Site:
    """The end of a layer that is a module of its own."""
    found = lp.layers_of(model, sample)
    return lp.Site(layer, len(found), layer, found, found.shapes[layer], found.output_shape[-1])


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def kinds(head: nn.Module) -> list[str]:
    return [type(part).__name__ for part in head.modules() if not list(part.children())]


# --- DGL --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "features", "expected"),
    [
        # 3 (16^2 + 2*16) convolutions, 3 (64^2 + 64 + 2*64) hidden, 64*10 + 10
        (lp.MlpSrHead(), (16, 32, 32), 864 + 12_864 + 650),
        (lp.MlpSrHead(linears=2, bias=False), (16, 32, 32), 864 + 8_448 + 650),
        (lp.MlpSrHead(convs=1, linears=0), (16, 8, 8), 288 + 650),
        (lp.MlpSrHead(), (16, 4, 4), 864 + 3 * (16 * 16 + 3 * 16) + 170),  # a quarter of 4 is one pixel
        # MAN++: 16->128->128->128, pooled to one pixel, 128->512->512->512->10
        (
            lp.MlpSrHead(size=8, width=128, pooled=1, hidden=512),
            (16, 32, 32),
            16 * 128 + 2 * 128**2 + 3 * 256 + 128 * 512 + 2 * 512**2 + 3 * 512 * 3 + 5_130,
        ),
        (lp.MlpSrHead(), (16,), 3 * (16 * 16 + 3 * 16) + 170),  # no maps: no convolutions
    ],
    ids=str,
)
def test_mlp_sr_parameters(head: lp.MlpSrHead, features: tuple[int, ...], expected: int) -> None:
    built = head(site(*features))
    assert parameters(built) == expected
    assert built(torch.zeros(2, *features)).shape == (2, 10)


def test_mlp_sr_pools_to_a_quarter_rounded_up() -> None:
    sizes = [part.output_size for part in lp.MlpSrHead()(site(4, 9, 30)).modules() if hasattr(part, "output_size")]
    assert sizes == [(3, 8), (2, 2)]


def test_dgl_draws_its_linear_layers_from_narrow_normal_distributions() -> None:
    torch.manual_seed(0)
    linears = [part for part in lp.dgl().aux(site(64, 32, 32)).modules() if isinstance(part, nn.Linear)]
    assert [linear.weight.std().item() for linear in linears] == pytest.approx([0.01] * 4, rel=0.05)
    assert not any(linear.bias.any() for linear in linears)
    assert all(part.bias.any() for part in lp.MlpSrHead()(site(16, 32, 32)).modules() if isinstance(part, nn.Linear))


def test_mlp_sr_of_tokens_normalises_each() -> None:
    head = lp.MlpSrHead()(site(5, 16, outputs=(5, 10)))
    assert "LayerNorm" in kinds(head)
    assert "BatchNorm1d" not in kinds(head)
    assert head(torch.zeros(2, 5, 16)).shape == (2, 5, 10)


# --- PredSim ----------------------------------------------------------------------------------------------------------------

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
    head = lp.PooledHead(features)
    built = head(site(width, side, side))
    kernel = head.kernel(torch.Size((2, width, side, side)))
    assert (side // kernel[0], side // kernel[1]) == after
    assert parameters(built) == width * after[0] * after[1] * 10 + 10
    assert not built[-1].weight.any()
    assert built[-1].bias.any()


def test_pooled_heads_pad_with_zeros() -> None:
    """Six rows in windows of four: the last window holds two rows and two of zeros."""
    head = lp.PooledHead(2 * 6)(site(2, 6, 6))
    pooled = head[0](torch.ones(1, 2, 6, 6))
    assert pooled[0, 0].tolist() == [[1, 1, 1], [0.5, 0.5, 0.5]]


def test_pooled_heads_of_vectors_are_linear() -> None:
    assert kinds(lp.PooledHead(8)(site(16))) == ["Pool", "Linear"]


# --- Interlocking, TRGL, InfoPro on ImageNet --------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "expected"), [(128, 222_410), (256, 369_866)])
def test_conv_head_parameters(width: int, expected: int) -> None:
    assert parameters(lp.ConvHead()(site(width, 8, 8))) == expected


def test_conv_head_order() -> None:
    conv = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds(lp.ConvHead()(site(4, 8, 8))) == [*conv, *conv, "Pool", "Linear"]
    assert kinds(lp.ConvHead(convs=(), norm=False)(site(4, 8, 8))) == ["Pool", "Linear"]
    assert "BatchNorm2d" not in kinds(lp.ConvHead(norm=False)(site(4, 8, 8)))


def test_one_conv_heads_of_resnet110_on_stl10() -> None:
    with torch.device("meta"):
        found = lp.layers_of(lp.models.resnet110(), torch.zeros(2, 3, 96, 96))
        sites = [lp.Site(layer, 55, layer, found, found.shapes[layer], 10) for layer in (0, 18, 19, 36, 37)]
        heads = {site.layer: lp.OneConvHead()(site) for site in sites}
    assert {layer: head[2].kernel_size[0] for layer, head in heads.items()} == {0: 16, 18: 16, 19: 16, 36: 16, 37: 8}
    assert kinds(heads[37]) == ["Conv2d", "ReLU", "AvgPool2d", "BatchNorm2d", "Flatten", "Linear"]
    # 9 * 64^2, 2 * 64, 64 channels of 3x3 averages to 10 classes
    assert parameters(heads[37]) == 36_864 + 128 + 5_770


def test_one_conv_heads_average_small_maps_and_tokens() -> None:
    assert lp.OneConvHead()(site(4, 2, 2))(torch.zeros(2, 4, 2, 2)).shape == (2, 10)
    assert kinds(lp.OneConvHead()(site(5, 4))) == ["LayerNorm", "Pool", "Linear"]
    assert lp.OneConvHead()(site(5, 4, outputs=(5, 10)))(torch.zeros(2, 5, 4)).shape == (2, 5, 10)


def test_bottleneck_head_of_resnet101() -> None:
    head = lp.BottleneckHead()(site(512, 28, 28, outputs=(1000,)))
    convs = 512 * 128 + 9 * 128 * 256 + 9 * 256 * 512 + 512 * 2048
    assert parameters(head) == convs + 2 * (128 + 256 + 512 + 2048) + 2_049_000
    assert head[:-2](torch.zeros(1, 512, 28, 28)).shape == (1, 2048, 7, 7)
    with pytest.raises(BadInput, match="aux=Head"):
        lp.BottleneckHead()(site(512))


def test_heads_with_outputs_of_their_own() -> None:
    assert lp.Head(outputs=128)(site(16, 8, 8))(torch.zeros(2, 16, 8, 8)).shape == (2, 128)


def test_bare_heads_change_nothing() -> None:
    features = torch.randn(2, 3, 4, 4)
    assert lp.Bare()(site(3, 4, 4))(features) is features


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lp.MlpSrHead(convs=-1, pooled=0, std=-0.1), ["convs", "pooled", "std"]),
        (lambda: lp.PooledHead(0), ["features=0"]),
        (lambda: lp.ConvHead((8, 0)), ["convs=(8, 0)"]),
        (lambda: lp.OneConvHead(()), ["pools"]),
        (lambda: lp.BottleneckHead((8,)), ["2 or more"]),
        (lambda: lp.Head(outputs=-1), ["outputs"]),
        (lambda: lp.SampledLayers(0, 2.0, "block"), ["depth=0", "pyramid=2.0", "basic, bottleneck, conv, copy"]),
    ],
)
def test_bad_values_are_refused_together(make: Callable[[], AuxBuilder], words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


# --- AugLocal beyond the CIFAR ResNets --------------------------------------------------------------------------------------


def test_sampled_bottlenecks_of_resnet50() -> None:
    """Stem -> like layer 8 (1024 channels) -> like layer 16 (2048): widths of 256 and 512 inside."""
    with torch.device("meta"):
        here = of(torchvision.models.resnet50(), torch.zeros(2, 3, 64, 64), 0)
        head = lp.SampledLayers(2, 0, "bottleneck")(here)
    blocks = [part for part in head.modules() if isinstance(part, Bottleneck)]
    convs = [[c.out_channels for c in block.body if isinstance(c, nn.Conv2d)] for block in blocks]
    assert convs == [[256, 256, 1024], [512, 512, 2048]]
    assert [block.body[3].stride for block in blocks] == [(2, 2), (2, 2)]
    assert kinds(head)[-2:] == ["Pool", "Linear"]


@pytest.mark.parametrize(("narrow", "wide", "stride"), [(64, 256, 1), (256, 512, 2), (512, 512, 1)])
def test_bottlenecks_are_torchvisions(narrow: int, wide: int, stride: int) -> None:
    torch.manual_seed(0)
    own = Bottleneck(narrow, wide, stride)
    down = nn.Sequential(nn.Conv2d(narrow, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
    same = narrow == wide and stride == 1
    theirs = torchvision.models.resnet.Bottleneck(narrow, wide // 4, stride, None if same else down)
    for a, b in zip(theirs.parameters(), own.parameters(), strict=True):
        a.data = b.data
    x = torch.randn(2, narrow, 8, 8)
    assert torch.equal(own(x), theirs(x))


def vgg13() -> tuple[nn.Module, Tensor]:
    return torchvision.models.vgg13_bn(), torch.zeros(2, 3, 64, 64)


def test_sampled_convolutions_of_vgg13() -> None:
    """Of its 10 convolutions those after the first: 0 + 4.5 -> 4 (256 channels) and 9 (512)."""
    with torch.device("meta"):
        head = lp.SampledLayers(2, 0, "conv")(of(*vgg13(), 0))
    convs = 9 * 64 * 256 + 3 * 256 + 9 * 256 * 512 + 3 * 512
    assert parameters(head) == convs + 2 * (512 * 512 + 3 * 512) + 513_000
    conv, linear = ["Conv2d", "BatchNorm2d", "ReLU"], ["Linear", "BatchNorm1d", "ReLU"]
    pooled = ["MaxPool2d", *conv]
    assert kinds(head) == [*pooled, *pooled, "Flatten", "AdaptiveAvgPool1d", *linear, *linear, "Linear"]


def test_the_last_sampled_convolutions_keep_their_map() -> None:
    """From 512 to 512 channels VGG halves the map, its heads do not; the classifier's layers are not sampled."""
    with torch.device("meta"):
        head = lp.SampledLayers(4, 0, "conv")(of(*vgg13(), 7))
    assert kinds(head)[:6] == ["Conv2d", "BatchNorm2d", "ReLU"] * 2
    assert "MaxPool2d" not in kinds(head)


class LanguageModel(nn.Module):
    """Tokens to an output for each."""

    def __init__(self, width: int = 8, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True) for _ in range(layers)
        )
        self.out = nn.Linear(width, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.out(x)
        return logits


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, num_classes=10)


TOKENS = torch.zeros(2, 5, dtype=torch.int64)
COPIED = [  # model, sample, layer, the class of the copies, how many, outputs of the head
    (lambda: lp.models.mlp(8, (6, 6, 6, 6)), torch.zeros(2, 8), 0, nn.Sequential, 2, (2, 10)),
    (lambda: lp.models.mlp(8, (6, 6, 6, 6)), torch.zeros(2, 8), 3, nn.Sequential, 0, (2, 10)),
    (vit, torch.zeros(2, 3, 32, 32), 0, timm.models.vision_transformer.Block, 2, (2, 10)),
    (LanguageModel, TOKENS, 0, nn.TransformerEncoderLayer, 2, (2, 5, 11)),
]


@pytest.mark.parametrize("unit", ["basic", "copy"])
@pytest.mark.parametrize(("build", "sample", "layer", "kind", "count", "outputs"), COPIED)
def test_copies_of_layers(
    build: Callable[[], nn.Module],
    sample: Tensor,
    layer: int,
    kind: type[nn.Module],
    count: int,
    outputs: tuple[int, ...],
    unit: str,
) -> None:
    """Fresh ones: no weight is the network's own, nor equal to one of it."""
    torch.manual_seed(0)
    model = build()
    here = of(model, sample, layer)
    head = lp.SampledLayers(2, 0, unit)(here)
    *copies, _, _ = head
    assert [type(copy) for copy in copies] == [kind] * count
    assert head(torch.randn(here.features)).shape == outputs
    own = [p for p in model.parameters() if p.ndim > 1]
    for copied in (p for p in head.parameters() if p.ndim > 1):
        assert not any(p.shape == copied.shape and torch.equal(p, copied) for p in own)


def test_copies_of_convolutional_blocks_that_keep_their_shape() -> None:
    model = nn.Sequential(*[nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(5)], nn.Flatten())
    here = of(nn.Sequential(model, nn.Linear(4 * 36, 3)), torch.zeros(2, 4, 6, 6), 0)
    head = lp.SampledLayers(3, 0, "copy")(here)
    assert kinds(head) == ["Conv2d", "ReLU"] * 3 + ["Pool", "Linear"]


def test_layers_as_wide_as_the_outputs_are_copied() -> None:
    """Only the last layer can be the classifier, and of a language model the block before it is none."""
    mlp = of(lp.models.mlp(10, (10, 10, 10, 10)), torch.zeros(2, 10), 0)
    assert len(lp.SampledLayers(9, 0)(mlp)) == 3 + 2  # of five layers those between the first and the classifier
    model = LanguageModel(width=12)
    model.out = nn.Linear(12, 12)
    here = of(model, TOKENS, 0)
    assert len(lp.SampledLayers(9, 0)(here)) == len(here.layers) - 1 + 2


def test_odd_sides_are_halved_too() -> None:
    """28 -> 14 -> 7 -> 4 pixels: three strides of 2."""
    with torch.device("meta"):
        here = of(torchvision.models.resnet34(), torch.zeros(2, 3, 112, 112), 0)
        head = lp.SampledLayers(16, 0)(here)
    strides = [block.conv1.stride[0] for block in head.modules() if isinstance(block, lp.models.BasicBlock)]
    assert (here.features[2], here.layers.shapes[-1][2]) == (28, 4)
    assert strides.count(2) == 3
    assert head[:16](torch.zeros(here.features, device="meta")).shape[2:] == (4, 4)


def test_the_imagenet_form_has_no_norm_before_the_linear_layer() -> None:
    here = of(lp.models.resnet14(), torch.zeros(2, 3, 32, 32), 3)
    assert kinds(lp.auglocal(depth=1).aux(here))[-3:] == ["Pool", "BatchNorm1d", "Linear"]
    assert kinds(lp.auglocal(depth=1, joined=False).aux(here))[-2:] == ["Pool", "Linear"]
    assert "BatchNorm1d" not in kinds(lp.auglocal(depth=1, joined=False).aux(here))


def test_copies_that_do_not_fit_are_refused() -> None:
    here = of(lp.models.mlp(8, (7, 6, 5, 4)), torch.zeros(2, 8), 0)
    with pytest.raises(BadInput, match="keep their shape"):
        lp.SampledLayers(2, 0)(here)


def test_a_layer_of_several_modules_is_not_copied() -> None:
    """The first block of a ViT has the class token and positions as well."""
    here = of(vit(), torch.zeros(2, 3, 32, 32), 0)
    with pytest.raises(BadInput, match="several modules"):
        lp.SampledLayers(4, 0)(here)


@pytest.mark.parametrize(
    ("build", "sample"), [(lambda: lp.models.mlp(8, (6, 6, 6, 6)), torch.zeros(4, 8)), (LanguageModel, TOKENS)]
)
def test_layer_wise_auglocal_trains_networks_without_maps(build: Callable[[], nn.Module], sample: Tensor) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(sample.shape) if sample.is_floating_point() else torch.arange(10).reshape(2, 5)
    targets = torch.arange(4) if sample.is_floating_point() else inputs
    learner = lp.Learner(
        build(),
        lp.auglocal(2),
        modules=5,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        sample=(inputs, targets),
    )
    first = learner.step((inputs, targets))
    for _ in range(20):
        last = learner.step((inputs, targets))
    assert all(b < a for a, b in zip(first, last, strict=True))
