"""Models by name: options in the name, and names that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localprop import models
from localprop.errors import BadInput
from localprop.models.spec import ModelSpec, parse_model_spec


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet8", (1, 8, 8)), ("mlp", (7,)), ("mlp:6,5", (2, 3, 3))]
)
def test_models_are_built_by_name(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model, inputs = models.create_model(name, 7, shape), torch.zeros(2, *shape)
    assert model(inputs).shape == (2, 7)


def test_plain_names_build_the_networks_of_localprop() -> None:
    assert count_parameters(models.create_model("resnet32", 10, (3, 32, 32))) == 466_906
    mlp = models.create_model("mlp:6", 2, (3,))
    assert isinstance(mlp, nn.Sequential)
    assert mlp[1].out_features == 6


def test_a_name_is_split_into_values_and_options() -> None:
    assert parse_model_spec("mlp:6,5,norm=True") == ModelSpec("mlp", (6, 5), {"norm": True})
    assert parse_model_spec("vit,size=(4, 2)", ",") == ModelSpec("vit", (), {"size": (4, 2)})


def test_options_reach_the_resnet() -> None:
    wide = models.create_model("resnet8:widen=2,shortcut=pad", 10, (3, 8, 8))
    assert count_parameters(wide) == count_parameters(models.resnet8(widen=2, shortcut="pad"))
    counts = [
        count_parameters(model) for model in (wide, models.resnet8(widen=2), models.resnet8())
    ]
    assert counts[0] != counts[1] != counts[2]


def test_options_reach_the_vgg() -> None:
    vgg = models.create_model("vgg8b: leaky=True, dropout=0.25", 10, (3, 16, 16))
    assert isinstance(vgg, models.VGG)
    first, third = vgg.layers[0], vgg.layers[2]
    assert isinstance(first, nn.Sequential)
    assert isinstance(third, nn.Sequential)
    modules = [str(module) for module in third]
    assert modules[::4] == ["Dropout2d(p=0.25, inplace=False)", str(first.act)]
    assert isinstance(first.act, nn.LeakyReLU)
    assert first.act.negative_slope == 0.01


def test_options_reach_the_grouped_resnet() -> None:
    grouped = models.create_model("grouped_resnet:depth=8,groups=4,ends=(1,)", 10, (3, 8, 8))
    assert isinstance(grouped, models.GroupedResNet)
    blocks = [layer for layer in grouped.layers if isinstance(layer, models.BasicBlock)]
    assert len(blocks) == len(grouped.layers) - 2
    assert [block.conv1.groups for block in blocks] == [4, 1, 4]


def test_options_reach_the_transformer() -> None:
    transformer = models.create_model("transformer:width=8,heads=2,blocks=1,tied=True", 5, (6,))
    assert isinstance(transformer, models.TransformerLM)
    assert transformer.unembed.weight.shape == (5, 8)
    assert transformer.embed.positions.shape == (6, 8)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnt32", (3, 32, 32), "did you mean resnet32"),
        ("zzz", (3, 32, 32), "no model 'zzz'.*timm:NAME, torchvision:NAME or hf:TYPE"),
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
        (
            "vgg8b:dropout=high",
            (3, 32, 32),
            "dropout='high' does not fit: give something like dropout=0.0",
        ),
        ("vgg8b", (3, 8, 8), "16 pixels a side"),
        ("grouped_resnet:ends=7", (3, 32, 32), r"like ends=\(7, 15\)"),
        ("transformer", (3, 32, 32), r"takes tokens.*\(128,\)"),
        ("mlp", (3, 0, 4), "positive sizes"),
        ("mlp", (), "positive sizes"),
    ],
)
def test_names_and_options_that_are_refused(
    name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        models.create_model(name, 10, shape)


def test_all_problems_of_a_request_are_reported_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        models.create_model("mlp", 0, ())
    assert len(caught.value.problems) == 2
