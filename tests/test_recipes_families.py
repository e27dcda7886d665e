"""Recipes of the families: heads, losses, images and grids of the papers' official codes."""

from __future__ import annotations

import pytest
import torch

import localprop as lp
from localprop import recipes
from localprop.data import Augment, Options
from localprop.recipes.standin import blank
from localprop.training.config import Config, build
from localprop.training.expression import rule_of


def rule(name: str) -> lp.Rule:
    return rule_of(recipes.find(name).config.method)


def test_balanced_rows_of_contsup_have_no_decoder() -> None:
    names = [name for name in recipes.names("contsup") if "balanced" in name]
    assert len(names) == 6
    assert {type(rule(name).loss) for name in names} == {lp.Contrastive}
    assert all(("resnet32" in name) == bool(recipes.find(name).readings) for name in names)


def test_what_infopros_tables_leave_open() -> None:
    assert "head of DGL" in recipes.find("resnet32_cifar10_dgl_k4").readings
    for name in ("resnet110_cifar10_infopro_contrast_balanced_k3", "resnet32_cifar10_greedy_k4"):
        assert recipes.find(name).claim == recipes.find(name).published != ""


# predsim


@pytest.mark.parametrize(
    ("name", "augment"),
    [
        ("vgg8b_mnist_predsim", Augment(pad=2)),
        ("vgg8b_x2_fashion_mnist_predsim_cutout", Augment(pad=2, flip=True, cutout=14)),
        ("vgg8b_kmnist_predsim", Augment()),
        ("vgg8b_cifar10_predsim", Augment(pad=4, flip=True)),
    ],
)
def test_images_of_predsim(name: str, augment: Augment) -> None:
    assert blank(recipes.find(name).config).augment == augment


def test_how_far_a_crop_goes() -> None:
    usual = Augment(pad=4, reflect=True)
    assert Options(crop_pad=2).augmentation(usual) == Augment(pad=2, reflect=True)
    assert Options(crop_pad=2).augmentation(Augment(flip=True)) == Augment(flip=True)  # none where none is usual
    assert Options(augment="crop", crop_pad=3, padding="zeros").augmentation(usual) == Augment(pad=3)
    assert Options(augment="flip", crop_pad=3).augmentation(usual) == Augment(flip=True)
    assert Options(crop_pad=0).problems("mnist") == ["The crop_pad is 0 pixels, but at least 1 is needed: raise it."]


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
def test_rows_of_predsim(name: str, method: str, lr: float, error: float) -> None:
    recipe = recipes.find(name)
    assert (recipe.config.method, recipe.config.lr) == (method, lr)
    assert recipe.claim.startswith(f"test error {error:.2f} %")


def test_hidden_layers_of_predsim() -> None:
    cifar = recipes.find("mlp_cifar100_sim")
    assert "hidden=(3000,3000,3000)" in cifar.config.model
    assert "dropout=0.025" in cifar.config.model
    assert ("62.46" in cifar.claim, "20 classes per batch" in cifar.notes) == (True, True)
    assert recipes.find("mlp_cifar100_pred").notes == ""
    for name, zeros in {"mlp_mnist_predsim": True, "mlp_mnist_e2e": False}.items():
        config = recipes.find(name).config
        learner = build(Config(model=config.model, data="mnist", batch_size=4), blank(config))
        *_, output = [m for m in learner.model.modules() if isinstance(m, torch.nn.Linear)]
        assert (output.in_features, bool(output.weight.any())) == (1024, not zeros)


# windows and momentum networks


def test_hpff_on_imagenet_is_windows_alone() -> None:
    made = rule("resnet101_imagenet_hpff_k4")
    assert made.credit == lp.Windows(size=2)
    assert made.aux == lp.BottleneckHead((256, 256, 512, 2048))
    decoder = lp.PixelReconstruction(gradual=True)
    assert made.loss == lp.Terms((lp.Term(decoder, 20.0), lp.Term(lp.CrossEntropy(), 0.75)))  # 5 times four quarters


def test_weights_of_infopro_with_man() -> None:
    """Of 16 modules, by stages 1 to 3: 4.64, 4.29, 3.93 and a tenth."""
    made = rule("resnet32_cifar10_infopro_man_k16")
    assert isinstance(made.loss, lp.ThroughNextLayer)
    weights = [(term.first, term.last) for term in made.loss.loss.terms]  # type: ignore[attr-defined]
    assert weights == [(4.643, 3.929), (0.4643, 0.3929)]
    assert made.aux == lp.NextLayerHead(lp.Head(convs=2))
    assert recipes.find("resnet32_cifar10_infopro_man_k16").claim.startswith("test error 9.65 %")
    assert recipes.find("resnet110_cifar10_infopro_man_k55").claim.startswith("not claimed")


@pytest.mark.parametrize("k", [2, 4])
def test_man_plus_on_imagenet_has_infopros_decoder(k: int) -> None:
    recipe = recipes.find(f"resnet152_imagenet_man_plus_k{k}")
    made = rule_of(recipe.config.method)
    assert isinstance(made.loss, lp.ThroughNextLayer)
    assert [term.first for term in made.loss.loss.terms] == [5.0, 0.75]  # type: ignore[attr-defined]
    assert made.aux.scaled  # type: ignore[attr-defined]
    assert (recipe.config.lr, recipe.config.batch_size, recipe.config.epochs) == (0.4, 1024, 90)


# neuron groups


def test_the_grid_of_neuron_groups() -> None:
    groups = {1: (1, 2, 4, 8), 2: (1, 2, 4, 8), 4: (1, 2, 4, 8), 8: (1, 2, 4), 16: (1, 2)}
    wanted = {
        f"{network}_{data}_gn_dgl_g{g}_k{k}"
        for network in ("resnet32", "resnet32_x2")
        for data in ("cifar10", "cifar100")
        for k, own in groups.items()
        for g in own
    }
    assert {*recipes.names("gn_dgl")} == wanted
    assert recipes.find("resnet32_cifar10_gn_dgl_g2_k1").claim.startswith("not claimed")
