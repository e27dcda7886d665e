"""Messages between ranks carry every layout, dtype and kind of model without a changed bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from tests.helpers.ranks import (
    COMBINED,
    Batches,
    Blocks,
    RankPool,
    Run,
    build_tied,
    compare_on_ranks,
    noise,
    train_on_ranks,
)

pytestmark = pytest.mark.xdist_group("ranks")


# --- models --------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Integer inputs, a mask that all layers read, and parameters and buffers outside layers."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        # It is off wherever a layer has hooks, as on ranks.
        torch.backends.mha.set_fastpath_enabled(False)
        self.embedding = nn.Embedding(20, 16)
        self.positions = nn.Parameter(torch.randn(6, 16) * 0.1)
        self.register_buffer("scale", torch.full((16,), 0.9))
        self.blocks = nn.ModuleList(
            [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(5)]
        )
        self.head = nn.Linear(16, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        x = self.embedding(tokens) + self.positions
        for block in self.blocks:
            x = block(x, src_key_padding_mask=padding) * self.scale
        logits: Tensor = self.head(x.mean(1))
        return logits


class WorkBetweenLayers(Blocks):
    """Random, in-place and view operations between the layers."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(functional.dropout(x, 0.1, self.training))
            x = (torch.relu_(x) if i % 2 else x + 1).transpose(2, 3)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Narrow(nn.Module):
    """Maps of one channel or one pixel at the cuts, whose layout does not show in their strides."""

    def __init__(self, *chans: int, stride: int = 1) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(3, chans[0], 3, stride, 1), nn.BatchNorm2d(chans[0]))]
        for a, b in pairwise(chans):
            layers.append(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            )
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(chans[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return logits


def build_frozen(*prefixes: str) -> nn.Module:
    model = Blocks()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes))
    return model


def build_tied_and_frozen() -> nn.Module:
    """A frozen weight that layers of several stages share."""
    model = build_tied((3, 1, 6))
    model.get_parameter("blocks.3.conv.weight").requires_grad_(False)
    return model


# Trained weights that layers of one stage share.
build_tied_on_ranks = partial(build_tied, (0, 2), (4, 5, 7))


def build_channels_last(build: Callable[[], nn.Module]) -> nn.Module:
    model: nn.Module = build().to(memory_format=torch.channels_last)
    return model


def channels_last_noise() -> Batches:
    return [
        (images.contiguous(memory_format=torch.channels_last), labels) for images, labels in noise()
    ]


def sentences() -> Batches:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randint(20, (n, 6), generator=generator).clamp(min=1),
            torch.randint(10, (n,), generator=generator),
        )
        for n in (8, 8, 8, 5)
    ]


def build_vit() -> nn.Module:
    options: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 4,
        "depth": 4,
        "embed_dim": 24,
        "num_heads": 3,
        "num_classes": 10,
    }
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", drop_rate=0.1, drop_path_rate=0.1, **options
    )
    return model


build_resnet18 = partial(torchvision.models.resnet18, num_classes=10)
images_of_32 = partial(noise, (6, 6, 5), (3, 32, 32))
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {"build": build_resnet18, "batches": images_of_32},
    "resnet18 channels last": {
        "build": partial(build_channels_last, build_resnet18),
        "batches": images_of_32,
    },
    "vit": {"build": build_vit, "batches": partial(noise, (6, 6, 5), (3, 16, 16))},
    "tokens": {"build": Tokens, "batches": sentences},
    "channels last": {
        "build": partial(build_channels_last, Blocks),
        "batches": channels_last_noise,
    },
    "one channel": {
        "build": partial(build_channels_last, partial(Narrow, 1, 4, 1, 4, 1, 1)),
        "batches": channels_last_noise,
    },
    "one pixel": {
        "build": partial(build_channels_last, partial(Narrow, *[8] * 6, stride=8)),
        "batches": channels_last_noise,
    },
    "between layers": {"build": WorkBetweenLayers},
    "frozen in the middle": {"build": partial(build_frozen, "blocks.3", "blocks.4", "blocks.5.0")},
    "frozen at the start": {
        "build": partial(build_frozen, "stem", "blocks.0", "blocks.1", "blocks.2")
    },
    "frozen at the end": {
        "build": partial(build_frozen, "head", "blocks.5", "blocks.6", "blocks.7")
    },
    "tied and frozen": {"build": build_tied_and_frozen},
    "tied": {"build": build_tied_on_ranks},
}


@pytest.mark.parametrize(
    "rule", [lp.backlink(), lp.end_to_end()], ids=lambda rule: str(rule.credit)
)
@pytest.mark.parametrize("name", MODELS)
def test_models(pool: RankPool, name: str, rule: lp.Rule) -> None:
    options = {"modules": 4, "microbatches": 2}
    compare_on_ranks(pool, Run(rule, options=options, **MODELS[name]), 2)


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize(
    "rule",
    [lp.greedy(), lp.backlink(), lp.backlink(2, 0.5), lp.interlocking(2), lp.interlocking(3)],
    ids=lambda rule: str(rule.credit),
)
def test_tied_parameters_within_a_rank(pool: RankPool, rule: lp.Rule, microbatches: int) -> None:
    """A module per layer, so that both ranks step what several of their modules use."""
    options = {"modules": 9, "microbatches": microbatches}
    ranks = {"cuts": (4,)}
    compare_on_ranks(pool, Run(rule, build_tied_on_ranks, options=options, ranks=ranks), 2)


@pytest.mark.parametrize("rule", [lp.contsup(), COMBINED], ids=lambda rule: str(rule.credit))
@pytest.mark.parametrize(
    "name", ["channels last", "one channel", "frozen in the middle", "frozen at the start"]
)
def test_models_with_context(pool: RankPool, name: str, rule: lp.Rule) -> None:
    options = {"modules": 4, "microbatches": 2}
    compare_on_ranks(pool, Run(rule, options=options, **MODELS[name]), 4)


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"precision": "bf16", "microbatches": 2, "recompute": True}]
)
def test_autocast(pool: RankPool, options: dict[str, Any]) -> None:
    run = Run(COMBINED, options={"modules": 6} | options, inspect_after=(1,))
    compare_on_ranks(pool, run, 2)


# --- what does not travel ------------------------------------------------------------------------


class Bypass(Blocks):
    """The head reads something of the stem's, without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = x.detach().mean() + 1
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)) * gate)
        return logits


def test_data_past_a_cut_without_a_gradient_is_refused(pool: RankPool) -> None:
    for answer in pool.run(2, train_on_ranks, Run(lp.backlink(), Bypass)):
        assert isinstance(answer, lp.BadInput), answer
        assert "give another output when they run alone" in str(answer)


class ModelBuffer(Blocks):
    """A running statistic of the model itself, updated between two of the last blocks."""

    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            if i == 6 and self.training:
                self.level.lerp_(x.detach().mean((0, 2, 3)), 0.1)
            x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)) - self.level)
        return logits


@pytest.mark.xfail(
    strict=True,
    reason="a buffer that no module of a layer owns is taken to be rank 0's: README, Limits",
)
def test_a_buffer_of_the_models_own(pool: RankPool) -> None:
    compare_on_ranks(pool, Run(lp.backlink(), ModelBuffer), 2)
