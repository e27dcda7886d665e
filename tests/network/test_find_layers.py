"""The layers of models: those of other libraries, models of whole numbers, and their parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import localprop as lp
from tests.helpers import reference
from tests.helpers.reference import ReferenceModel, Through, assert_same_state, batches_of, sgd
from tests.helpers.towers import (
    Block,
    Tower,
    build_learner,
    build_preactivated,
    forward_in_order,
)

Build = Callable[[], nn.Module]


def layer_names(model: nn.Module, *shape: int) -> tuple[str, ...]:
    return lp.layers_of(model, torch.zeros(2, *shape)).names


# --- models of other libraries --------------------------------------------------------------------


def number_blocks(prefix: str, *counts: int, infix: str = "") -> list[str]:
    """`layers.0.0`, `layers.0.1`, ...: the names of the blocks of each group."""
    return [
        f"{prefix}{group}.{infix}{i}" for group, count in enumerate(counts) for i in range(count)
    ]


def name_resnet_layers(*counts: int) -> list[str]:
    """The layers of a torchvision ResNet: the stem, and the blocks of `layer1`, `layer2`, ..."""
    return ["maxpool"] + [
        f"layer{group + 1}.{i}" for group, count in enumerate(counts) for i in range(count)
    ]


MODELS: dict[str, tuple[Build, int, list[str]]] = {
    "torchvision resnet18": (torchvision.models.resnet18, 64, name_resnet_layers(2, 2, 2, 2)),
    "torchvision resnet50": (torchvision.models.resnet50, 64, name_resnet_layers(3, 4, 6, 3)),
    "timm resnet18": (lambda: timm.create_model("resnet18"), 64, name_resnet_layers(2, 2, 2, 2)),
    "timm vit": (reference.tiny_vit, 32, ["patch_embed", *(f"blocks.{i}" for i in range(4))]),
    "torchvision vit": (
        lambda: torchvision.models.vit_b_16(image_size=32),
        32,
        ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12))],
    ),
    "timm convnext": (
        lambda: timm.create_model("convnext_atto"),
        64,
        ["stem.1", *number_blocks("stages.", 2, 2, 6, 2, infix="blocks.")],
    ),
    "timm swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=56, window_size=7),
        56,
        ["patch_embed.norm", *number_blocks("layers.", 2, 2, 6, 2, infix="blocks.")],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_layers_of_known_models(name: str) -> None:
    build, side, expected = MODELS[name]
    with torch.device("meta"):
        model = build()
    layers = lp.layers_of(model, torch.zeros(2, 3, side, side))
    assert list(layers.names) == expected
    owned = [parameter for own in layers.parameters for parameter in own]
    assert sorted(owned) == sorted(dict(model.named_parameters()))


@pytest.mark.parametrize("name", ["torchvision convnext", "torchvision swin"])
def test_every_block_of_other_torchvision_models_is_a_layer(name: str) -> None:
    """Patch merging may be a layer of its own or begin the next block."""
    builds: dict[str, Build] = {
        "torchvision convnext": torchvision.models.convnext_tiny,
        "torchvision swin": torchvision.models.swin_t,
    }
    with torch.device("meta"):
        model = builds[name]()
    found = layer_names(model, 3, 64, 64)
    classes = ("CNBlock", "SwinTransformerBlock")
    blocks = [n for n, module in model.named_modules() if type(module).__name__ in classes]
    assert set(blocks) < set(found)
    assert len(found) - len(blocks) in (1, 4)


COUNTS: list[tuple[Build, int, int]] = [
    (lp.models.resnet32, 32, 16),
    (lp.models.resnet110, 32, 55),
    (torchvision.models.resnet18, 64, 9),
    (torchvision.models.resnet34, 64, 17),
    (torchvision.models.resnet50, 64, 17),
    (lambda: timm.create_model("resnet18"), 64, 9),
    (reference.tiny_vit, 32, 1 + 4),
    (lambda: timm.create_model("vit_tiny_patch16_224"), 224, 1 + 12),
]


@pytest.mark.parametrize(("build", "side", "count"), COUNTS)
def test_layer_counts(build: Build, side: int, count: int) -> None:
    with torch.device("meta"):
        assert len(lp.layers_of(build(), torch.zeros(2, 3, side, side))) == count


def test_shapes_are_those_of_the_sample() -> None:
    layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 32, 32))
    assert [tuple(shape) for shape in layers.shapes] == [
        (2, 16, 32, 32),
        (2, 16, 32, 32),
        (2, 32, 16, 16),
        (2, 64, 8, 8),
    ]
    assert tuple(layers.output_shape) == (2, 10)


# --- whole numbers as inputs ----------------------------------------------------------------------


class Embedded(nn.Module):
    """Whole numbers in: an embedding, blocks over the sequence, a classifier on its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = forward_in_order(self.blocks, self.embedding(tokens))
        output: Tensor = self.head(x.mean(1))
        return output


def split_embedded(model: nn.Module) -> list[nn.Module]:
    """The layers of `Embedded`, written out."""
    assert isinstance(model, Embedded)
    last = Through(lambda b, x: b[1](b[0](x).mean(1)), model.blocks[2], model.head)
    return [model.embedding, model.blocks[0], model.blocks[1], last]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_of_whole_numbers_trains_as_its_layers_do(recompute: bool) -> None:
    torch.manual_seed(0)
    model = Embedded().double()
    batches = [(torch.randint(11, (7, 5)), targets) for _, targets in batches_of((1,), 3)]
    learner = lp.Learner(
        model, lp.backlink(), modules=4, optimizer=sgd, sample=batches[0], recompute=recompute
    )
    assert learner.partition.layers.names == ("embedding", "blocks.0", "blocks.1", "blocks.2")
    expected = ReferenceModel.of(learner, split_embedded)
    reference.train(expected, reference.backlink(1), batches)
    for batch in batches:
        learner.step(batch)
    assert_same_state(model, expected.model, 1e-12)


# --- parameters -----------------------------------------------------------------------------------


def build_tied(first: int, second: int) -> Tower:
    """A tower in which two blocks share a weight."""
    tower = Tower(forward_in_order)
    tower.linear(second).weight = tower.linear(first).weight
    return tower


def test_tied_weights_within_a_module_train() -> None:
    model = build_tied(0, 1)
    images, targets = batches_of((6,), 3)[0]
    learner = build_learner(model, lp.greedy(), modules=2)
    plain = copy.deepcopy(model)
    learner.backward((images, targets))
    features = plain.blocks[1](plain.blocks[0](images))
    head = learner.heads["0"]
    assert isinstance(head, nn.ModuleDict)
    loss = nn.functional.cross_entropy(head["aux"](features), targets)
    (expected,) = torch.autograd.grad(loss, [plain.linear(0).weight])
    assert model.linear(0).weight is model.linear(1).weight
    torch.testing.assert_close(model.linear(0).weight.grad, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("rule", [lp.greedy(), lp.backlink(layers=1)])
def test_tied_weights_across_a_cut_are_used_by_two_layers(first: int, rule: lp.Rule) -> None:
    learner = build_learner(build_tied(first, first + 1), rule, modules=4)
    name = f"blocks.{first}.linear.weight"
    layers = learner.partition.layers
    assert [i for i, names in enumerate(layers.parameters) if name in names] == [first, first + 1]
    assert learner.wiring.tied == {name: (first + 1, [first, first + 1])}


def test_parameters_that_no_path_reaches_are_named() -> None:
    """They may belong to a branch that other batches take, so they are trained if it is taken."""
    tower = Tower(lambda b, x: b[2](b[0](x)))
    layers = lp.layers_of(tower, torch.zeros(2, 6, dtype=torch.float64))
    assert layers.names == ("blocks.0", "blocks.2")
    unreached = [f"blocks.{i}.linear.{name}" for i in (1, 3) for name in ("weight", "bias")]
    assert sorted(layers.unreached) == sorted(unreached)
    assert set(unreached) < {name for own in layers.parameters for name in own}


def test_parameters_under_no_grad_stay_as_they_are() -> None:
    def forward(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = blocks[0](x)
        output: Tensor = blocks[2](blocks[1](x))
        return output

    tower, batch = Tower(forward, count=3), batches_of((6,), 1)[0]
    before = copy.deepcopy(tower.blocks[0])
    learner = build_learner(tower, lp.greedy(), modules=2)
    learner.step(batch)
    assert_same_state(tower.blocks[0], before)
    assert learner.partition.layers.unreached[0] == "blocks.0.linear.weight"


def test_a_branch_that_the_sample_does_not_take_is_trained() -> None:
    def forward(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        output: Tensor = blocks[2](blocks[0](x) if bool((x == 0).all()) else blocks[1](x))
        return output

    tower, (inputs, targets) = Tower(forward, count=3), batches_of((6,), 1)[0]
    plain = copy.deepcopy(tower)
    learner = lp.Learner(
        tower, lp.end_to_end(), modules=1, optimizer=sgd, sample=(torch.zeros_like(inputs), targets)
    )
    learner.step((inputs, targets))
    optimizer = sgd(plain.parameters())
    torch.autograd.backward(nn.functional.cross_entropy(plain(inputs), targets))
    optimizer.step()
    assert_same_state(tower, plain)


def test_nothing_to_train_is_refused() -> None:
    frozen = build_preactivated(False).requires_grad_(False)
    with pytest.raises(lp.BadInput, match="Every parameter of the model is frozen"):
        build_learner(frozen, lp.greedy(), modules=2)


def test_the_channels_of_features_of_which_a_part_goes_on() -> None:
    """As in ShuffleNet: one half passes, a convolution takes the other."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            left, right = x.chunk(2, dim=1)
            mixed = torch.cat([left, self.conv(right)], 1).view(len(x), 2, 4, *x.shape[2:])
            return mixed.transpose(1, 2).flatten(1, 2)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Half(), Half(), nn.Flatten(), nn.Linear(128, 3))
    layers = lp.layers_of(model, torch.zeros(2, 3, 4, 4))
    assert layers.channels[1] == 1  # of the first half, whose own output tells nothing


# --- what crosses the end of a layer --------------------------------------------------------------


class AttentionBlock(nn.Module):
    """It returns its weights, which nobody reads, and the mask that it has got."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        weights = self.linear(hidden).softmax(-1)
        return hidden * weights * mask, weights.detach(), mask, None


class MaskedTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AttentionBlock() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mask = x > 0
        for block in self.blocks:
            x, _, mask, _ = block(x, mask)
        return x


def test_masks_that_blocks_hand_on_cross_the_ends_of_layers() -> None:
    layers = lp.layers_of(MaskedTower(), torch.zeros(2, 6))
    assert layers.names == ("blocks.0", "blocks.1", "blocks.2")
    assert layers.constants == ((2,), (2,), ())
    assert layers.select_crossing(0, "hwm") == ["h", "m"]
    assert layers.place_crossing(0, "hm") == {0: "h", 2: "m"}
