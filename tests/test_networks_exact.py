"""The papers' networks against independent ones: torchvision's with the same weights, attention by hand, groups apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from localprop.errors import BadInput
from localprop.models import BasicBlock, ConvClassifier, DenseNetBC, grouped_resnet, transformer_lm, vgg8b, vgg13
from localprop.models.resnet import Padded

torchvision = pytest.importorskip("torchvision")


def weights_in_order(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


# --- DenseNet ---------------------------------------------------------------------------------------------------------


def torchvision_densenet(layers: int, growth: int) -> nn.Module:
    sizes = {"growth_rate": growth, "block_config": (layers,) * 3, "num_init_features": 2 * growth}
    model = torchvision.models.DenseNet(**sizes, num_classes=10)
    model.features.conv0 = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    model.features.norm0 = model.features.relu0 = model.features.pool0 = nn.Identity()
    return model


def test_densenet_has_torchvision_s_parameters() -> None:
    with torch.device("meta"):
        own, other = lp.models.densenet_bc_100_12(), torchvision_densenet(16, 12)
    assert [w.shape for w in weights_in_order(own)] == [w.shape for w in weights_in_order(other)]
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in other.parameters())


def test_densenet_computes_what_torchvision_s_does() -> None:
    own, other = DenseNetBC(3, growth=4).double(), torchvision_densenet(3, 4).double()
    other.load_state_dict(dict(zip(other.state_dict(), weights_in_order(own), strict=True)))
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(own(images), other(images))
    torch.testing.assert_close(weights_in_order(own), weights_in_order(other))  # running statistics
    torch.testing.assert_close(own.eval()(images), other.eval()(images))


def test_a_transition_belongs_to_the_layer_after_it() -> None:
    layers = lp.layers_of(DenseNetBC(2, growth=4), torch.zeros(2, 3, 8, 8))
    assert [tuple(shape[1:]) for shape in layers.shapes] == [
        *[(12, 8, 8), (16, 8, 8)],
        *[(12, 4, 4), (16, 4, 4)],
        *[(12, 2, 2), (16, 2, 2)],
    ]


# --- VGG --------------------------------------------------------------------------------------------------------------


def test_the_order_inside_the_layers_of_vgg8b() -> None:
    kinds = [[type(part).__name__ for part in layer] for layer in vgg8b(dropout=0.2, leaky=True).layers]
    plain, drop = ["Conv2d", "BatchNorm2d", "LeakyReLU"], ["Dropout2d"]
    pooled = [*drop, "MaxPool2d", *plain]
    hidden = [*drop, "MaxPool2d", "Flatten", "Linear", "BatchNorm1d", "LeakyReLU"]
    assert kinds == [plain, drop + plain, pooled, drop + plain, pooled, pooled, hidden, ["Dropout", "Linear"]]


def test_local_losses_of_vgg8b_see_features_before_the_pool() -> None:
    layers = lp.layers_of(vgg8b(input_shape=(1, 16, 16)), torch.zeros(2, 1, 16, 16))
    sides = [shape[2] for shape in layers.shapes[:6]]
    assert sides == [16, 16, 8, 8, 4, 2]


def test_names_of_vgg8b_do_not_depend_on_dropout() -> None:
    with torch.device("meta"):
        assert list(vgg8b().state_dict()) == list(vgg8b(dropout=0.2).state_dict())


@pytest.mark.parametrize(("side", "kernel", "stride"), [(64, 3, 1), (65, 7, 2)])
def test_large_images_enter_by_a_strided_convolution(side: int, kernel: int, stride: int) -> None:
    with torch.device("meta"):
        model, images = vgg8b(input_shape=(3, side, side)), torch.zeros(2, 3, side, side)
        first = model.layers[0].conv
        assert (first.kernel_size[0], first.stride[0]) == (kernel, stride)
        assert model(images).shape == (2, 10)


def test_initial_weights_of_vgg() -> None:
    assert vgg8b(zero_output=True).layers[-1].linear.weight.abs().max() == 0
    assert vgg8b().layers[-1].linear.weight.abs().max() > 0
    model = vgg13(10, hidden=64)
    assert model.readout.hidden.linear.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert model.layers[3].conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.01)
    assert not any(parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_vgg13_computes_what_torchvision_s_does() -> None:
    own = vgg13(10, hidden=16).eval()
    with torch.device("meta"):
        other = torchvision.models.vgg13_bn(num_classes=10).eval()
        narrow = [nn.Linear(49 * 512, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)]
        other.classifier = nn.Sequential(*narrow)
    other.load_state_dict(dict(zip(other.state_dict(), weights_in_order(own), strict=True)), assign=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(own(images), other(images))


def test_refusals_of_vgg() -> None:
    with pytest.raises(BadInput) as caught:
        vgg8b(0, input_shape=(0, 8, 8), feat_mult=0, dropout=1.0)
    assert len(caught.value.problems) == 5
    assert "16 pixels" in caught.value.problems[-1]
    with pytest.raises(BadInput, match="dropout"):
        vgg13(dropout=-0.1)


# --- residual networks ------------------------------------------------------------------------------------------------


def test_the_shortcut_without_parameters() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    expected = torch.tensor([[[0.0, 2.0], [6.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]])[None]
    assert torch.equal(Padded(2, 1)(x), expected)
    block = BasicBlock(4, 8, stride=2, shortcut="pad")
    assert sum(p.numel() for p in block.shortcut.parameters()) == 0
    assert block(torch.zeros(1, 4, 5, 5)).shape == (1, 8, 3, 3)
    with pytest.raises(BadInput, match=r"shortcut='zero'.*\"conv\".*\"pad\""):
        BasicBlock(4, 8, shortcut="zero")  # type: ignore[arg-type]


def test_wider_networks() -> None:
    model = lp.models.resnet32(widen=2)
    assert [block.conv1.out_channels for block in model.blocks[::5]] == [32, 64, 128]
    assert (model.conv.out_channels, model.fc.in_features) == (32, 128)


def test_groups_stay_apart_but_for_the_start_of_a_module() -> None:
    network = grouped_resnet(14, groups=2, ends=(2, 6)).eval()
    x = network.layers[0](torch.randn(1, 3, 16, 16)).detach().requires_grad_()
    seen = []
    for layer in network.layers[1:-1]:
        out = layer(x)
        half = out[:, : out.shape[1] // 2].sum()  # of group 0
        (gradient,) = torch.autograd.grad(half, x, retain_graph=True)
        seen.append(bool(gradient[:, x.shape[1] // 2 :].any()))
        x = out
    assert seen == [False, False, True, False, False, False]


def test_grouped_resnet_costs_a_share_of_the_plain_one() -> None:
    """Convolutions of two groups have half the weights, all but the stem and the first one after a module's end."""
    plain, grouped = lp.models.resnet32(), grouped_resnet(32, groups=2, ends=(7, 15))
    weights = {name: m.weight.numel() for name, m in plain.blocks.named_modules() if isinstance(m, nn.Conv2d)}
    expected = [count // (1 if name == "7.conv1" else 2) for name, count in weights.items()]
    assert [m.weight.numel() for m in grouped.layers[1:-1].modules() if isinstance(m, nn.Conv2d)] == expected
    assert grouped.layers[0][0].weight.shape == (16, 3, 3, 3)
    assert grouped.layers[-1].conv.weight.shape == (128, 64, 3, 3)


def test_the_classifier_of_grouped_networks_by_hand() -> None:
    head = ConvClassifier(4, 3, hidden=5).double()
    x = torch.randn(6, 4, 7, 7, dtype=torch.float64)
    maps = functional.conv2d(x, head.conv.weight, stride=2, padding=1)
    maps = (maps - maps.mean((0, 2, 3), keepdim=True)) / (maps.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    hidden = maps.relu().mean((2, 3)) @ head.hidden.weight.T + head.hidden.bias
    torch.testing.assert_close(head(x), hidden.relu() @ head.fc.weight.T + head.fc.bias)


def test_small_images_keep_their_side_in_torchvision_s_networks() -> None:
    layers = lp.layers_of(lp.models.small_resnet("resnet18", in_chans=1), torch.zeros(2, 1, 8, 8))
    assert [tuple(shape[1:]) for shape in layers.shapes[::2]] == [
        (64, 8, 8),
        (64, 8, 8),
        (128, 4, 4),
        (256, 2, 2),
        (512, 1, 1),
    ]


def test_the_larger_stem_is_torchvision_s_without_the_pool() -> None:
    own, other = lp.models.create_model("resnet18_cifar:kernel=7", 10, (3, 64, 64)), torchvision.models.resnet18()
    assert (repr(own.conv1), repr(own.maxpool)) == (repr(other.conv1), "Identity()")
    assert own.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (7 * 7 * 64)), rel=0.05)
    shapes = lp.layers_of(own, torch.zeros(2, 3, 64, 64)).shapes
    assert [shape[2] for shape in shapes] == [32, 32, 32, 16, 16, 8, 8, 4, 4]
    with pytest.raises(BadInput, match="kernel=5 is unknown: choose 3"):
        lp.models.small_resnet("resnet18", kernel=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 33}, "take 32 or 38"),
        ({"groups": 3}, "take one of 1, 2, 4, 8, 16"),
        ({"ends": (7, 7)}, "must increase"),
        ({"ends": (16,)}, r"0 \(the stem\) and 15"),
        ({"groups": 0, "widen": 0}, "groups is 0(.|\n)*widen is 0"),
    ],
)
def test_refusals_of_grouped_networks(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        grouped_resnet(**options)  # type: ignore[arg-type]


# --- transformer ------------------------------------------------------------------------------------------------------


def language_model(**options: object) -> nn.Module:
    return transformer_lm(vocabulary=11, context=8, width=12, heads=3, blocks=2, **options)  # type: ignore[arg-type]


def tokens() -> Tensor:
    return torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("t", [1, 4, 7])
def test_no_position_sees_a_later_one(t: int) -> None:
    model, before = language_model(), tokens()
    after = before.clone()
    after[:, t] = (after[:, t] + 1) % 11
    assert torch.equal(model(before)[:, :t], model(after)[:, :t])
    assert not torch.isclose(model(before)[:, t:], model(after)[:, t:]).all(-1).any()


def by_hand(model: nn.Module, tokens: Tensor) -> Tensor:
    """The network from its weights alone, one head and one position at a time."""
    w = dict(model.named_parameters())
    norm = lambda x, name: functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    linear = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    x = w["embed.tokens.weight"][tokens] + w["embed.positions"][: tokens.shape[1]]
    for i in range(2):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attention.qkv").split(12, dim=-1)
        mixed = torch.zeros_like(x)
        for head in range(3):
            own = slice(4 * head, 4 * head + 4)
            for t in range(x.shape[1]):
                scores = (k[:, : t + 1, own] * q[:, t : t + 1, own]).sum(-1) / 2  # the root of 4 channels
                mixed[:, t, own] = (scores.softmax(-1)[..., None] * v[:, : t + 1, own]).sum(1)
        x = x + linear(mixed, f"blocks.{i}.attention.out")
        hidden = functional.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.0"))
        x = x + linear(hidden, f"blocks.{i}.mlp.2")
    return norm(x, "norm") @ w["unembed.weight"].T


@pytest.mark.parametrize("length", [8, 5])
def test_attention_by_hand(length: int) -> None:
    model = language_model().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # so that attention is far from uniform
    torch.testing.assert_close(model(tokens()[:, :length]), by_hand(model, tokens()[:, :length]))


def test_initial_weights_of_the_transformer() -> None:
    model = transformer_lm(width=128, blocks=8)
    block = model.blocks[3]
    assert block.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.mlp[2].weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert block.attention.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert model.embed.positions.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.attention.qkv.bias.abs().max() == 0
    assert block.norm1.weight.min() == 1


def test_dropout_of_the_transformer_ends_with_training() -> None:
    model = language_model(dropout=0.5)
    assert not torch.equal(model(tokens()), model(tokens()))
    assert torch.equal(model.eval()(tokens()), model(tokens()))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_unembedding_is_found_by_name_in_the_last_layer(dropout: float) -> None:
    layers = lp.layers_of(language_model(dropout=dropout), tokens())
    assert layers.names == ("embed", "blocks.0", "blocks.1")
    assert "unembed.weight" in layers.parameters[2]
    assert layers.layer_of("unembed") == 2


def test_a_tied_unembedding_cannot_be_cut_off() -> None:
    model = language_model(tied=True)
    assert model.unembed.weight is model.embed.tokens.weight
    layers = lp.layers_of(model, tokens())
    lp.Partition.uniform(layers, 1)
    with pytest.raises(BadInput, match=r"embed.tokens.weight.*untie"):
        lp.Partition.uniform(layers, 2)


def test_refusals_of_the_transformer() -> None:
    with pytest.raises(BadInput) as caught:
        transformer_lm(vocabulary=0, width=10, heads=4, blocks=-1, dropout=2.0)
    assert len(caught.value.problems) == 4
