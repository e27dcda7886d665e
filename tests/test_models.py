"""The models: golden sizes, initialisation, and models by name."""

import math
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from localprop import models
from localprop.errors import BadInput

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


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnt32", (3, 32, 32), "did you mean resnet32"),
        ("resnet18", (3, 32, 32), "timm:NAME or torchvision:NAME"),
        ("zzz", (3, 32, 32), "no model 'zzz'"),
        ("resnet32", (64,), r"takes images \(C, H, W\)"),
        ("mlp:6,,5", (64,), "mlp:512,512"),
        ("mlp:0", (64,), "mlp:512,512"),
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
