"""The models: golden sizes, initialisation, and models by name."""

import math
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from localprop import models
from localprop.errors import BadInput
from localprop.network import layers_of

FACTORIES = {
    8: models.resnet8,
    14: models.resnet14,
    20: models.resnet20,
    32: models.resnet32,
    44: models.resnet44,
    56: models.resnet56,
    110: models.resnet110,
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("depth", "count", "mmacs"), [(32, 466_906, 69.12), (110, 1_730_714, 253.15)])
def test_golden_parameters_and_macs(depth: int, count: int, mmacs: float) -> None:
    with torch.device("meta"):
        model, images = models.cifar_resnet(depth), torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert parameters(model) == count
    assert counter.get_total_flops() / 2e6 == pytest.approx(mmacs, abs=0.005)


@pytest.mark.parametrize("depth", FACTORIES)
def test_factories_have_their_depth(depth: int) -> None:
    model = FACTORIES[depth](num_classes=7, in_chans=1)
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    shortcuts = [m for m in weighted if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(weighted) - len(shortcuts) == depth
    assert len(model.blocks) == (depth - 2) // 2
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_names_and_strides() -> None:
    model = models.resnet8()
    assert [name for name, _ in model.named_children()] == ["conv", "bn", "relu", "blocks", "pool", "fc"]
    shapes = []
    x = model.relu(model.bn(model.conv(torch.zeros(1, 3, 32, 32))))
    for block in model.blocks:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_a_block_by_hand() -> None:
    block = models.BasicBlock(1, 1).eval()
    nn.init.dirac_(block.conv1.weight)
    nn.init.dirac_(block.conv2.weight, groups=1)
    block.conv2.weight.data.mul_(-3)  # relu(x - 3 relu(x)): x where it is negative is cut off, -2x where positive
    x = torch.tensor([[[[1.0, -1.0], [2.0, 0.0]]]])
    assert torch.equal(block(x.clone()), torch.zeros_like(x))
    block.conv2.weight.data.mul_(-1)  # relu(x + 3 relu(x)) = 4 x where positive
    torch.testing.assert_close(block(x.clone()), torch.tensor([[[[4.0, 0.0], [8.0, 0.0]]]]), rtol=1e-4, atol=0)


def test_convolutions_are_drawn_with_fan_out() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(64, 128, 3), nn.Linear(4, 4))
    bias, weight = head[0].bias.clone(), head[1].weight.clone()
    models.init_convs(head)
    assert head[0].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert head[0].weight.mean().item() == pytest.approx(0, abs=0.001)
    assert torch.equal(head[0].bias, bias)
    assert torch.equal(head[1].weight, weight)


@pytest.mark.parametrize(("depth", "advice"), [(2, "take 8 or 14"), (18, "take 14 or 20"), (50 + 1, "50 or 56")])
def test_depths_that_do_not_exist(depth: int, advice: str) -> None:
    with pytest.raises(BadInput, match=advice):
        models.cifar_resnet(depth)


def test_all_problems_of_a_resnet_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        models.cifar_resnet(9, num_classes=0, in_chans=-1)
    assert len(caught.value.problems) == 3


def test_mlp() -> None:
    model = models.mlp(12, hidden=(5, 4), num_classes=3)
    kinds = [type(layer).__name__ for layer in model]
    assert kinds == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert model(torch.zeros(2, 3, 2, 2)).shape == (2, 3)
    assert len(models.mlp(4, hidden=())) == 2
    with pytest.raises(BadInput, match="at least 1"):
        models.mlp(4, hidden=(0,))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet8", (1, 8, 8)),
        ("mlp", (7,)),
        ("mlp:6,5", (2, 3, 3)),
        ("timm:resnet18", (1, 32, 32)),
        ("timm:vit_tiny_patch16_224", (3, 32, 48)),  # takes its image size, as a pair
        ("torchvision:resnet18", (3, 32, 32)),
        ("torchvision:vit_b_16", (3, 32, 32)),  # takes its image size, as one number
    ],
)
def test_models_by_name(name: str, shape: tuple[int, ...]) -> None:
    if ":" in name and not name.startswith("mlp"):
        pytest.importorskip(name.partition(":")[0])
    with torch.device("meta"):
        model, inputs = models.create_model(name, 7, shape), torch.zeros(2, *shape)
    assert model(inputs).shape == (2, 7)


def test_own_names_build_the_own_networks() -> None:
    assert parameters(models.create_model("resnet32", 10, (3, 32, 32))) == 466_906
    assert models.create_model("mlp:6", 2, (3,))[1].out_features == 6


def test_options_reach_the_networks() -> None:
    wide = models.create_model("resnet8:widen=2,shortcut=pad", 10, (3, 8, 8))
    assert parameters(wide) == parameters(models.resnet8(widen=2, shortcut="pad"))
    assert parameters(wide) != parameters(models.resnet8(widen=2)) != parameters(models.resnet8())
    vgg = models.create_model("vgg8b: leaky=True, dropout=0.25", 10, (3, 16, 16))
    assert [str(part) for part in vgg.layers[2]][::4] == ["Dropout2d(p=0.25, inplace=False)", str(vgg.layers[0].act)]
    assert vgg.layers[0].act.negative_slope == 0.01
    grouped = models.create_model("grouped_resnet:depth=8,groups=4,ends=(1,)", 10, (3, 8, 8))
    assert [block.conv1.groups for block in grouped.layers[1:-1]] == [4, 1, 4]
    transformer = models.create_model("transformer:width=8,heads=2,blocks=1,tied=True", 5, (6,))
    assert transformer.unembed.weight.shape == (5, 8)
    assert transformer.embed.positions.shape == (6, 8)


def test_options_reach_the_libraries() -> None:
    pytest.importorskip("timm")
    model = models.create_model("timm:resnet18,drop_rate=0.3", 10, (3, 32, 32))
    assert model.drop_rate == 0.3


def test_the_mlp_of_local_losses() -> None:
    """Batch norm before the nonlinearity; dropout at the start of the next layer, where a local loss does not see it."""
    model = models.create_model("mlp:6,5,norm=True,leaky=True,dropout=0.5", 3, (4,))
    kinds = " ".join(type(part).__name__ for part in model)
    assert kinds == "Flatten Linear BatchNorm1d LeakyReLU Sequential BatchNorm1d LeakyReLU Sequential"
    assert [type(part).__name__ for part in model[4]] == ["Dropout", "Linear"]
    assert layers_of(model, torch.zeros(2, 4)).names == ("3", "6", "7")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnt32", (3, 32, 32), "did you mean resnet32"),
        ("zzz", (3, 32, 32), "no model 'zzz'.*timm:NAME or torchvision:NAME"),
        ("resnet32", (64,), r"takes images \(C, H, W\)"),
        ("mlp:6,,5", (64,), "mlp:512,512"),
        ("mlp:0", (64,), r"\[64, 0, 10\].*at least 1"),
        ("mlp:6.5", (64,), r"mlp:hidden=\(6.5,\) does not fit.*\(512, 512\)"),
        ("mlp:6,hidden=(5,)", (64,), "twice"),
        ("mlp:dropout=1", (64,), r"dropout=1 must lie in \[0, 1\)"),
        ("resnet32:2", (3, 32, 32), r"\(2,\) without a name: write NAME:option=value"),
        ("resnet32:widn=2", (3, 32, 32), "did you mean widen.* It has widen=1, shortcut='conv'"),
        ("resnet32:widen=2,widen=3", (3, 32, 32), "gives widen twice"),
        ("resnet32:widen=True", (3, 32, 32), "widen=True does not fit"),
        ("resnet32:num_classes=3", (3, 32, 32), "no option 'num_classes'"),
        ("resnet32:widen=f(2)", (3, 32, 32), r"f\(2\) in .* is no value"),
        ("resnet32:**widen", (3, 32, 32), "cannot be read"),
        ("resnet32:widen=2)(1", (3, 32, 32), "cannot be read"),
        ("resnet32:shortcut=none", (3, 32, 32), "shortcut='none' is unknown"),
        ("densenet_bc_100_12:growth=2", (3, 32, 32), "It has none"),
        ("vgg8b:dropout=high", (3, 32, 32), "dropout='high' does not fit: give something like dropout=0.0"),
        ("vgg8b", (3, 8, 8), "16 pixels a side"),
        ("grouped_resnet:ends=7", (3, 32, 32), r"like ends=\(7, 15\)"),
        ("transformer", (3, 32, 32), r"takes tokens.*\(128,\)"),
        ("timm:resnet18,0.1", (3, 32, 32), "without a name"),
        ("timm:resnet18,pretrained=True", (3, 32, 32), "cannot take pretrained=True: .* untrained.*before lp.Learner"),
        ("timm:resnet18,img_size=4", (3, 32, 32), "cannot take img_size=4: the data decide that"),
        ("timm:resnet18,patch=4", (3, 32, 32), "cannot be built with {'patch': 4}"),
        ("torchvision:vit_b_16,patch_size=4", (3, 32, 32), "cannot be built with {'patch_size': 4}"),
        ("mlp", (3, 0, 4), "positive sizes"),
        ("mlp", (), "positive sizes"),
        ("timm:resnet19", (3, 32, 32), "did you mean .*resnet1"),
        ("torchvision:resnet19", (3, 32, 32), "did you mean .*resnet1"),
        ("torchvision:fcn_resnet50", (3, 32, 32), "no model 'fcn_resnet50'"),
        ("torchvision:resnet18", (1, 28, 28), r"1 channel.*timm:NAME"),
        ("torchvision:vit_b_16", (3, 30, 30), "cannot be built"),
    ],
)
def test_refusals(name: str, shape: tuple[int, ...], message: str) -> None:
    if name.startswith(("timm", "torchvision")):
        pytest.importorskip(name.partition(":")[0])
    with pytest.raises(BadInput, match=message):
        models.create_model(name, 10, shape)


def test_the_same_name_elsewhere_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    with pytest.raises(BadInput, match=r"mean resnet18_cifar or timm:resnet18 or torchvision:resnet18\?"):
        models.create_model("resnet18:widen=2", 10, (3, 32, 32))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BadInput, match=r"mean resnet18_cifar or torchvision:resnet18\?"):
        models.create_model("resnet18", 10, (3, 32, 32))


def test_all_problems_of_a_request_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        models.create_model("mlp", 0, ())
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_missing_package_names_the_pip_line(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(BadInput, match=rf"{package} cannot.*pip install 'localprop\[vision\]'"):
        models.create_model(f"{package}:resnet18", 10, (3, 32, 32))
