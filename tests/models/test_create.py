"""Networks by name: layers, a step of local learning, and the sizes that papers or codes give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import localprop as lp
from localprop.models.create import NETWORKS

pytest.importorskip("torchvision")
pytest.importorskip("timm")

# What fits into a test: the name with options, the shape of a sample, how many layers.
SMALL: dict[str, tuple[str, tuple[int, ...], int]] = {
    "resnet8": ("resnet8:widen=2,shortcut=pad", (1, 8, 8), 4),
    "resnet14": ("resnet14", (1, 8, 8), 7),
    "resnet20": ("resnet20", (1, 8, 8), 10),
    "resnet32": ("resnet32", (1, 8, 8), 16),
    "resnet44": ("resnet44", (1, 8, 8), 22),
    "resnet56": ("resnet56", (1, 8, 8), 28),
    "resnet110": ("resnet110:shortcut=pad", (1, 8, 8), 55),
    "resnet128": ("resnet128", (1, 8, 8), 64),
    "resnet18_cifar": ("resnet18_cifar", (1, 8, 8), 9),
    "resnet34_cifar": ("resnet34_cifar", (1, 8, 8), 17),
    "resnet50_cifar": ("resnet50_cifar", (1, 8, 8), 17),
    "resnet101_cifar": ("resnet101_cifar", (1, 8, 8), 34),
    "resnet152_cifar": ("resnet152_cifar", (1, 8, 8), 51),
    "grouped_resnet": ("grouped_resnet:depth=14,groups=4,ends=(0,3,6)", (1, 8, 8), 8),
    "densenet_bc_100_12": ("densenet_bc_100_12", (1, 8, 8), 48),
    "vgg8b": ("vgg8b:leaky=True,dropout=0.2", (1, 16, 16), 8),
    "vgg11b": ("vgg11b", (1, 16, 16), 11),
    "vgg13": ("vgg13:hidden=16,dropout=0.5", (1, 32, 32), 10),
    "vgg19": ("vgg19:hidden=16", (1, 32, 32), 16),
    "swin_t": ("swin_t:window=4", (1, 64, 64), 16),
    "transformer": ("transformer:width=8,heads=2,blocks=3,dropout=0.1", (6,), 4),
    "mlp": ("mlp:8,8,norm=True,leaky=True,dropout=0.1", (2, 3), 3),
}


def build_sample(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.startswith("transformer"):
        return torch.zeros(4, *shape, dtype=torch.int64)
    return torch.randn(4, *shape)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_name_is_tried() -> None:
    assert SMALL.keys() == NETWORKS.keys()


# They take seconds, and differ from shallower networks in depth only.
DEEP = {"resnet110", "resnet128", "resnet101_cifar", "resnet152_cifar"}


@pytest.mark.parametrize(
    "network",
    [pytest.param(name, marks=[pytest.mark.long] * (name in DEEP)) for name in NETWORKS],
)
def test_layers_of_every_network(network: str) -> None:
    name, shape, layers = SMALL[network]
    with torch.device("meta"):
        model, inputs = lp.models.create_model(name, 7, shape), build_sample(name, shape)
        positions = shape if network == "transformer" else ()
        assert model(inputs).shape == (4, *positions, 7)
    assert len(lp.layers_of(model, inputs)) == layers


# One of each architecture: the others differ in depth only.
STEPPED = [
    "resnet8",
    "resnet18_cifar",
    "grouped_resnet",
    "densenet_bc_100_12",
    "vgg8b",
    "vgg13",
    "swin_t",
    "transformer",
    "mlp",
]


@pytest.mark.parametrize("network", STEPPED)
def test_a_step_of_two_modules_moves_every_weight(network: str) -> None:
    name, shape, _ = SMALL[network]
    model, inputs = lp.models.create_model(name, 7, shape), build_sample(name, shape)
    targets = torch.arange(4 * (shape[0] if network == "transformer" else 1)) % 7
    batch = (inputs, targets.view(4, -1).squeeze(1))
    sgd = lambda params: torch.optim.SGD(params, lr=0.01)  # noqa: E731
    # Biases do not count: one before a norm gets no gradient.
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    before = [weight.detach().clone() for weight in weights]
    losses = lp.Learner(model, lp.greedy(), modules=2, optimizer=sgd, sample=batch).step(batch)
    assert torch.isfinite(torch.stack(list(losses))).all()
    assert not any(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


# Published by the networks' own codes, or (M: millions) by their documents.
COUNTS: dict[tuple[str, int, tuple[int, ...]], int | str] = {
    ("vgg8b", 10, (3, 32, 32)): 8_903_434,
    ("vgg11b", 10, (3, 32, 32)): 11_559_946,
    ("vgg11b:feat_mult=2", 10, (3, 32, 32)): "42.0M",
    ("vgg11b:feat_mult=3", 10, (3, 32, 32)): "91.3M",
    ("vgg8b", 10, (1, 28, 28)): "7.3M",
    ("vgg8b", 10, (3, 96, 96)): "11.5M",
    ("resnet34_cifar", 10, (3, 32, 32)): 21_282_122,
}


@pytest.mark.parametrize(("arguments", "count"), COUNTS.items())
def test_published_counts(arguments: tuple[str, int, tuple[int, ...]], count: int | str) -> None:
    with torch.device("meta"):
        found = count_parameters(lp.models.create_model(*arguments))
    assert found == count or f"{found / 1e6:.1f}M" == count


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet34", 1 + 16),
        ("resnet50", 1 + 16),
        ("resnext101_32x8d", 1 + 33),
        ("vit_b_16", 1 + 12),
        ("swin_t", 1 + 12 + 3),  # the three that halve the map have weights of their own
    ],
)
def test_layers_of_networks_for_large_images(name: str, layers: int) -> None:
    with torch.device("meta"):
        model = lp.models.create_model(f"torchvision:{name}", 10, (3, 64, 64))
        inputs = torch.zeros(2, 3, 64, 64)
    assert len(lp.layers_of(model, inputs)) == layers


def test_a_vision_transformer_for_small_images() -> None:
    with torch.device("meta"):
        model = lp.models.create_model("timm:vit_tiny_patch16_224,patch_size=4", 10, (3, 32, 32))
        inputs = torch.zeros(2, 3, 32, 32)
    layers = lp.layers_of(model, inputs)
    assert len(layers) == 13
    assert layers.shapes[0] == (2, 64, 192)  # 8x8 patches of 4x4 pixels


@pytest.mark.parametrize(("name", "original"), [("vgg13", "vgg13_bn"), ("vgg19", "vgg19_bn")])
def test_vgg_counts_are_those_of_torchvision(name: str, original: str) -> None:
    with torch.device("meta"):
        counts = [
            count_parameters(lp.models.create_model(n, 1000, (3, 224, 224)))
            for n in (name, f"torchvision:{original}")
        ]
    assert counts[0] == counts[1]
