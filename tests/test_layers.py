"""The cut finder: models of others, odd models, and what is refused with the reason."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import reference
import timm
import torch
import torchvision
from reference import Through, Twin, assert_same_state, batches_of, sgd
from torch import Tensor, nn

import localprop as lp

Way = Callable[[nn.ModuleList, Tensor], Tensor]


def names(model: nn.Module, *shape: int) -> tuple[str, ...]:
    return lp.layers_of(model, torch.zeros(2, *shape)).names


# --- models of others -------------------------------------------------------------------------------------------------------


def numbered(prefix: str, *counts: int, infix: str = "") -> list[str]:
    """`layer1.0`, `layer1.1`, ...: stages of blocks."""
    return [f"{prefix}{stage}.{infix}{i}" for stage, count in enumerate(counts) for i in range(count)]


def torchvision_resnet(*counts: int) -> list[str]:
    return ["maxpool"] + [f"layer{stage + 1}.{i}" for stage, count in enumerate(counts) for i in range(count)]


MODELS: dict[str, tuple[Callable[[], nn.Module], int, list[str]]] = {
    "torchvision resnet18": (torchvision.models.resnet18, 64, torchvision_resnet(2, 2, 2, 2)),
    "torchvision resnet50": (torchvision.models.resnet50, 64, torchvision_resnet(3, 4, 6, 3)),
    "timm resnet18": (lambda: timm.create_model("resnet18"), 64, torchvision_resnet(2, 2, 2, 2)),
    "timm vit": (reference.tiny_vit, 32, ["patch_embed", *(f"blocks.{i}" for i in range(4))]),
    "torchvision vit": (
        lambda: torchvision.models.vit_b_16(image_size=32),
        32,
        ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12))],
    ),
    "timm convnext": (
        lambda: timm.create_model("convnext_atto"),
        64,
        ["stem.1", *numbered("stages.", 2, 2, 6, 2, infix="blocks.")],
    ),
    "timm swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=56, window_size=7),
        56,
        ["patch_embed.norm", *numbered("layers.", 2, 2, 6, 2, infix="blocks.")],
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
def test_other_torchvision_models(name: str) -> None:
    """Blocks are layers, one for one; patch merging may be a layer of its own or begin the next block."""
    build = {
        "torchvision convnext": torchvision.models.convnext_tiny,
        "torchvision swin": torchvision.models.swin_t,
    }[name]
    with torch.device("meta"):
        model = build()
    found = names(model, 3, 64, 64)
    kinds = ("CNBlock", "SwinTransformerBlock")
    blocks = [n for n, module in model.named_modules() if type(module).__name__ in kinds]
    assert set(blocks) < set(found)
    assert len(found) - len(blocks) in (1, 4)


def test_the_model_is_not_touched() -> None:
    model = lp.models.resnet8()
    before = copy.deepcopy(model.state_dict())
    model.eval()
    lp.layers_of(model, torch.randn(2, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training or module._forward_hooks for module in model.modules())


def test_shapes_are_those_of_the_sample() -> None:
    layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 32, 32))
    assert [tuple(shape) for shape in layers.shapes] == [
        (2, 16, 32, 32),
        (2, 16, 32, 32),
        (2, 32, 16, 16),
        (2, 64, 8, 8),
    ]
    assert tuple(layers.output_shape) == (2, 10)


# --- odd models -------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Linear, then Tanh; by itself a layer."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


class PreActivated(nn.Module):
    """A layer that begins with an activation, written over the output of the layer before or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.relu, self.linear = nn.ReLU(inplace), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.relu(x))


def preactivated(inplace: bool) -> nn.Sequential:
    torch.manual_seed(3)
    blocks = [PreActivated(inplace) for _ in range(4)]
    return nn.Sequential(nn.Linear(6, 6), *blocks, nn.Linear(6, 3)).double()


def learner_of(model: nn.Module, rule: lp.Rule, modules: int, *, recompute: bool = False) -> lp.Learner:
    sample = batches_of((6,), 3)[0]
    return lp.Learner(model, rule, modules=modules, optimizer=sgd, sample=sample, recompute=recompute)


RULES = [lp.greedy(), lp.backlink(), lp.interlocking(2), lp.end_to_end()]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=["greedy", "backlink", "interlocking", "end_to_end"])
def test_cuts_that_the_next_layer_overwrites(rule: lp.Rule, recompute: bool) -> None:
    outcomes = [learner_of(preactivated(inplace), rule, 4, recompute=recompute) for inplace in (False, True)]
    for batch in batches_of((6,), 3):
        for learner in outcomes:
            learner.step(batch)
    assert [any(learner.partition.layers.overwritten) for learner in outcomes] == [False, True]
    assert_same_state(outcomes[0].model, outcomes[1].model)
    assert_same_state(outcomes[0].heads, outcomes[1].heads)


def test_an_identity_that_passes_a_tensor_on_is_no_cut() -> None:
    parts = [part for _ in range(3) for part in (Block(), nn.Identity())]
    model = nn.Sequential(*parts, nn.Linear(6, 3)).double()
    layers = lp.layers_of(model, batches_of((6,), 3)[0])
    assert layers.names == ("0", "2", "4", "6")
    assert layers.unclean["1"] == "it only passes a tensor on"
    check_against_reference(model, lambda m: [*m[0:1], *m[2:3], *m[4:5], m[6]])


class Tower(Through):
    """Blocks, a way of going through them, and a classifier."""

    def __init__(self, way: Way, count: int = 4) -> None:
        torch.manual_seed(2)
        super().__init__(way, *(Block() for _ in range(count)))
        self.head = nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(super().forward(x))


def check_against_reference(model: nn.Module, to_layers: reference.ToLayers, recompute: bool = False) -> lp.Learner:
    """Backlink on single layers, the rule whose errors cross every cut."""
    batches = batches_of((6,), 3)
    count = len(lp.layers_of(model, batches[0]))
    learner = learner_of(model, lp.backlink(), modules=count, recompute=recompute)
    twin = Twin.of(learner, to_layers)
    reference.train(twin, reference.backlink(1), batches)
    for batch in batches:
        learner.step(batch)
    assert_same_state(model, twin.model, 1e-12)
    return learner


def test_a_module_that_is_called_twice_is_no_cut() -> None:
    """Blocks 0 1 1 2 3: block 1 cannot be hooked; what it does belongs to the layer of block 2."""
    tower = Tower(lambda b, x: b[3](b[2](b[1](b[1](b[0](x))))))
    layers = lp.layers_of(tower, batches_of((6,), 3)[0])
    assert layers.names == ("blocks.0", "blocks.2", "blocks.3")
    assert layers.unclean["blocks.1"] == "it is called 2 times in one forward"
    assert set(layers.parameters[1]) == {f"blocks.{i}.linear.{p}" for i in (1, 2) for p in ("weight", "bias")}
    twice: Way = lambda b, x: b[1](b[0](b[0](x)))  # noqa: E731
    check_against_reference(
        tower, lambda t: [t.blocks[0], Through(twice, *t.blocks[1:3]), nn.Sequential(t.blocks[3], t.head)]
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_a_branch_around_a_block_makes_it_part_of_a_layer(recompute: bool) -> None:
    """x1 = block 0, x3 = x1 + block 2(block 1(x1)): only block 0 and block 3 end layers."""
    tower = Tower(lambda b, x: b[3]((lambda x1: x1 + b[2](b[1](x1)))(b[0](x))))
    layers = lp.layers_of(tower, batches_of((6,), 3)[0])
    assert layers.names == ("blocks.0", "blocks.3")
    assert layers.unclean["blocks.2"] == "a path from the input to the output goes around it"
    around: Way = lambda b, x: b[3](b[2](x + b[1](b[0](x))))  # noqa: E731
    check_against_reference(tower, lambda t: [t.blocks[0], Through(around, *t.blocks[1:], t.head)], recompute)


class Pair(nn.Module):
    """Returns a tuple, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return torch.tanh(self.linear(x)), None


def test_a_block_that_returns_a_tuple_is_no_cut() -> None:
    tower = Tower(lambda b, x: b[3](b[2](b[1](b[0](x))[0])))
    tower.blocks[1] = Pair().double()
    layers = lp.layers_of(tower, batches_of((6,), 3)[0])
    assert layers.names == ("blocks.0", "blocks.2", "blocks.3")
    assert layers.unclean["blocks.1"] == "it returns a tuple, not one tensor"
    pair: Way = lambda b, x: b[1](b[0](x)[0])  # noqa: E731
    check_against_reference(
        tower, lambda t: [t.blocks[0], Through(pair, *t.blocks[1:3]), nn.Sequential(t.blocks[3], t.head)]
    )
    with pytest.raises(lp.BadInput, match=r"modules=5, but the model has 3 layer.*blocks\.1: it returns a tuple"):
        lp.Partition.uniform(layers, 5)
    with pytest.raises(lp.BadInput, match=r"cannot be cut at 'blocks\.1': it returns a tuple, not one tensor"):
        lp.Partition.at(layers, ["blocks.1"])


class Embedded(nn.Module):
    """Whole numbers in: an embedding, blocks over the sequence, a classifier on its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_of_whole_numbers(recompute: bool) -> None:
    torch.manual_seed(0)
    model = Embedded().double()
    batches = [(torch.randint(11, (7, 5)), targets) for _, targets in batches_of((1,), 3)]
    learner = lp.Learner(model, lp.backlink(), modules=4, optimizer=sgd, sample=batches[0], recompute=recompute)
    assert learner.partition.layers.names == ("embedding", "blocks.0", "blocks.1", "blocks.2")
    twin = Twin.of(
        learner,
        lambda m: [m.embedding, *m.blocks[:2], Through(lambda b, x: b[1](b[0](x).mean(1)), m.blocks[2], m.head)],
    )
    reference.train(twin, reference.backlink(1), batches)
    for batch in batches:
        learner.step(batch)
    assert_same_state(model, twin.model, 1e-12)


def test_whole_numbers_without_an_embedding_are_refused() -> None:
    model = Through(lambda b, x: b[1](b[0](x / 255)), Block(), nn.Linear(6, 3))
    with pytest.raises(lp.BadInput, match=r"uint8.*nn\.Embedding"):
        lp.layers_of(model, torch.zeros(2, 6, dtype=torch.uint8))


# --- which parameters -------------------------------------------------------------------------------------------------------


def tied(first: int, second: int) -> Tower:
    tower = Tower(lambda b, x: b[3](b[2](b[1](b[0](x)))))
    tower.blocks[second].linear.weight = tower.blocks[first].linear.weight
    return tower


def test_tied_weights_within_a_module_train() -> None:
    model = tied(0, 1)
    (images, targets), learner = batches_of((6,), 3)[0], learner_of(model, lp.greedy(), modules=2)
    plain = copy.deepcopy(model)
    learner.backward((images, targets))
    features = plain.blocks[1](plain.blocks[0](images))
    loss = nn.functional.cross_entropy(learner.heads["0"]["aux"](features), targets)
    weight = plain.blocks[0].linear.weight
    (expected,) = torch.autograd.grad(loss, [weight])
    assert model.blocks[0].linear.weight is model.blocks[1].linear.weight
    torch.testing.assert_close(model.blocks[0].linear.weight.grad, expected, rtol=0, atol=1e-14)


def test_tied_weights_across_a_cut_are_refused_by_name() -> None:
    layers = lp.layers_of(tied(1, 2), torch.zeros(2, 6, dtype=torch.float64))
    with pytest.raises(
        lp.BadInput, match=r"'blocks\.1\.linear\.weight' is shared by the modules \[0, 1\]: untie.*modules=1"
    ):
        lp.Partition.uniform(layers, 2)


def test_tied_weights_that_other_losses_train_are_refused_by_name() -> None:
    """One module, but a link cuts it between the two users."""
    with pytest.raises(lp.BadInput, match=r"'blocks\.0\.linear\.weight' is shared by layers of module 0"):
        learner_of(tied(0, 1), lp.backlink(layers=1), modules=2)


def test_unused_parameters_are_refused_by_name() -> None:
    tower = Tower(lambda b, x: b[2](b[0](x)))
    with pytest.raises(
        lp.BadInput, match=r"blocks\.1\.linear\.weight, blocks\.1\.linear\.bias, .*Remove them, or freeze"
    ) as caught:
        lp.layers_of(tower, torch.zeros(2, 6, dtype=torch.float64))
    assert "blocks.3.linear.weight" in str(caught.value)
    for i in (1, 3):
        tower.blocks[i].requires_grad_(False)
    assert lp.layers_of(tower, torch.zeros(2, 6, dtype=torch.float64)).names == ("blocks.0", "blocks.2")


def test_parameters_under_no_grad_are_refused_by_name() -> None:
    def through(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = blocks[0](x)
        return blocks[2](blocks[1](x))

    with pytest.raises(lp.BadInput, match=r"blocks\.0\.linear\.weight"):
        lp.layers_of(Tower(through, count=3), torch.zeros(2, 6, dtype=torch.float64))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(lp.BadInput, match="Every parameter of the model is frozen"):
        learner_of(preactivated(False).requires_grad_(False), lp.greedy(), modules=2)


# --- what is refused --------------------------------------------------------------------------------------------------------


def test_a_model_that_returns_a_tuple_gets_advice() -> None:
    with pytest.raises(lp.BadInput, match=r"Pair returned a tuple of 2.*wrap the model.*`\.logits`"):
        lp.layers_of(Pair(), torch.zeros(2, 6))


def test_a_sample_that_does_not_fit() -> None:
    with pytest.raises(lp.BadInput, match=r"Tower could not run on a sample of shape \(2, 5\)"):
        lp.layers_of(Tower(lambda b, x: b[0](x)), torch.zeros(2, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (["blocks.0", "conv"], r"cannot be cut at 'conv': it is part of a layer\. Layers end at: relu, blocks\.0"),
        (
            ["blocks.0.conv1"],
            r"cannot be cut at 'blocks\.0\.conv1': a path from the input to the output goes around it",
        ),
        (["blocks.3"], r"no module 'blocks\.3': did you mean blocks\."),
        (["zzz"], r"no module 'zzz': layers end at: relu, "),
        (["blocks.1", "blocks.0"], r"after blocks\.1, blocks\.0 must increase and lie between 0 and 2"),
        (["blocks.0", "blocks.0"], "must increase"),
        (["blocks.2"], "must increase and lie between 0 and 2"),
        ([0, 3], r"after 0, 3 must .* 0 and 2: .* after 0 \(relu\), 1 \(blocks\.0\), 2 \(blocks\.1\), and ends with 3"),
        ([-1], "after -1 must increase and lie between 0 and 2"),
    ],
)
def test_bad_cuts(last: list[str | int], message: str) -> None:
    layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(lp.BadInput, match=message):
        lp.Partition.at(layers, last)


def test_all_bad_names_at_once() -> None:
    layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(lp.BadInput) as caught:
        lp.Partition.at(layers, ["conv", "zzz"])
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("modules", [0, -1, 5])
def test_bad_numbers_of_modules(modules: int) -> None:
    layers = lp.layers_of(lp.models.resnet8(), torch.zeros(2, 3, 8, 8))
    expected = rf"modules={modules}, but the model has 4 layer\(s\).*choose between 1 and 4"
    with pytest.raises(lp.BadInput, match=expected):
        lp.Partition.uniform(layers, modules)
    with pytest.raises(lp.BadInput, match=r"cuts=\(4,\) must increase and lie between 1 and 3"):
        lp.Partition(layers, (4,))
