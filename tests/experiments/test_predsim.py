"""PredSim's recipes: images, rows and hidden layers."""

from __future__ import annotations

import pytest
import torch

from localprop import experiments
from localprop.data import Augment, Images
from localprop.experiments.blank_data import make_blank_dataset
from localprop.training.build import build
from localprop.training.config import Config


def test_images() -> None:
    cifar, fashion = (
        experiments.find(f"vgg8b_{data}_predsim").config for data in ("cifar10", "fashion_mnist")
    )
    assert (cifar.augment, cifar.padding) == ("crop,flip", "zeros")
    assert (fashion.augment, fashion.crop_pad) == ("crop,flip", 2)
    assert (fashion.mean, fashion.std) == ((0.286,), (0.353,))


@pytest.mark.parametrize(
    ("name", "augment"),
    [
        ("vgg8b_mnist_predsim", Augment(pad=2)),
        ("vgg8b_x2_fashion_mnist_predsim_cutout", Augment(pad=2, flip=True, cutout=14)),
        ("vgg8b_kmnist_predsim", Augment()),
        ("vgg8b_cifar10_predsim", Augment(pad=4, flip=True)),
    ],
)
def test_augmentation(name: str, augment: Augment) -> None:
    dataset = make_blank_dataset(experiments.find(name).config)
    assert isinstance(dataset, Images)
    assert dataset.augment == augment


@pytest.mark.parametrize(
    ("name", "method", "lr", "error"),
    [
        ("vgg8b_x2_fashion_mnist_predsim", "predsim(beta=0.99, features=4096)", 3e-4, 4.33),
        ("vgg8b_fashion_mnist_pred", "predsim(beta=0.0, features=1024)", 5e-4, 5.66),
        ("vgg8b_mnist_predsim_cutout", "predsim(beta=0.99, features=1024)", 5e-4, 0.26),
        ("vgg8b_kmnist_predsim_cutout", "predsim(beta=0.99, features=1024)", 5e-4, 0.99),
        ("vgg11b_x3_cifar100_pred", "predsim(beta=0.0, features=4096)", 3e-4, 25.90),
    ],
)
def test_rows(name: str, method: str, lr: float, error: float) -> None:
    recipe = experiments.find(name)
    assert (recipe.config.method, recipe.config.lr) == (method, lr)
    assert recipe.claimed.startswith(f"test error {error:.2f} %")


def test_hidden_layers() -> None:
    cifar = experiments.find("mlp_cifar100_sim")
    assert "hidden=(3000,3000,3000)" in cifar.config.model
    assert "dropout=0.025" in cifar.config.model
    assert "62.46" in cifar.claimed
    assert "20 classes per batch" in cifar.notes
    assert experiments.find("mlp_cifar100_pred").notes == ""


@pytest.mark.parametrize(
    ("name", "starts_at_zero"), [("mlp_mnist_predsim", True), ("mlp_mnist_e2e", False)]
)
def test_local_training_starts_with_an_output_layer_of_zeros(
    name: str, starts_at_zero: bool
) -> None:
    config = experiments.find(name).config
    small = Config(model=config.model, data="mnist", batch_size=4)
    model = build(small, make_blank_dataset(config)).model
    *_, output = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert output.in_features == 1024
    assert bool(output.weight.any()) != starts_at_zero
