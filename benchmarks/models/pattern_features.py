"""Hand-written models that differ in what their features, inputs and outputs look like."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from cases import Build, Case, Cases, make_labels
from torch import Tensor, nn

SAMPLES, CLASSES = 6, 5
Module = Callable[[int, int], nn.Module]


class Mean(nn.Module):
    """The mean over some dimensions."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


class Squeeze(nn.Module):
    """Squeeze and excitation of linear layers, on (N, C, T)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width))

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.scale(x.mean(2)).sigmoid()
        return x * scale[:, :, None]


def chain(make: Module, widths: tuple[int, ...], dims: tuple[int, ...]) -> nn.Sequential:
    """Blocks, a mean, and a linear layer."""
    blocks = [make(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*blocks, Mean(*dims), nn.Linear(widths[-1], CLASSES))


def build_sound(after: Callable[[int], nn.Module]) -> Build:
    """(N, C, T) whose blocks end with a norm, an activation or a gate."""

    def build() -> Case:
        def block(a: int, b: int) -> nn.Module:
            return nn.Sequential(nn.Conv1d(a, b, 3, padding=1), after(b), nn.ReLU())

        batch = (torch.randn(SAMPLES, 2, 50), make_labels(SAMPLES))
        model = chain(block, (2, 16, 16, 16, 16), (2,))
        return Case(model, batch, blocks=4, channel=1)

    return build


def build_volume(after: Callable[[int], nn.Module]) -> Build:
    def build() -> Case:
        def block(a: int, b: int) -> nn.Module:
            return nn.Sequential(nn.Conv3d(a, b, 3, padding=1), after(b), nn.ReLU())

        batch = (torch.randn(SAMPLES, 2, 8, 8, 8), make_labels(SAMPLES))
        return Case(chain(block, (2, 8, 8, 8, 8), (2, 3, 4)), batch, blocks=4, channel=1)

    return build


class RawSound(nn.Module):
    """A raw signal, whose filters become the rows of a map: (N, C, F, T) with C = F at 32."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, filters, 16, stride=8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
            for a in (1, 32, 32)
        )
        self.last = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.filters(x)[:, None]
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.last(x.mean((2, 3)))
        return scores


def build_raw_sound(filters: int) -> Build:
    def build() -> Case:
        batch = (torch.randn(SAMPLES, 1, 384), make_labels(SAMPLES))
        return Case(RawSound(filters), batch, blocks=4)

    return build


def build_m5() -> Case:
    def block(a: int, b: int) -> nn.Module:
        own = (nn.Conv1d(a, b, 3, padding=1), nn.BatchNorm1d(b), nn.ReLU(), nn.MaxPool1d(2))
        return nn.Sequential(*own)

    batch = (torch.randn(SAMPLES, 1, 256), make_labels(SAMPLES))
    return Case(chain(block, (1, 8, 8, 16, 16), (2,)), batch, blocks=4, channel=1)


class TokenConv(nn.Module):
    """Blocks of tokens (N, T, C) that end with a convolution over time."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)
            self.conv = nn.Conv1d(width, width, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.linear(self.norm(x))
            mixed: Tensor = self.conv(x.transpose(1, 2))
            return x + mixed.transpose(1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.blocks = nn.Sequential(*(self.Block(16) for _ in range(4)))
        self.norm, self.last = nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.last(self.norm(self.blocks(self.embed(ids))).mean(1))
        return scores


def build_token_conv() -> Case:
    batch = (torch.randint(50, (SAMPLES, 23)), make_labels(SAMPLES))
    return Case(TokenConv(), batch, blocks=5, channel=2)


# --- one output per position ----------------------------------------------------------------------


class Dense(nn.Module):
    """A score for each pixel; the classes come first, as in torch, or last."""

    def __init__(self, width: int, classes: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
                for a in (3, width, width)
            )
        )
        self.head, self.is_last = nn.Conv2d(width, classes, 1), last

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(x))
        return scores.permute(0, 2, 3, 1) if self.is_last else scores


def build_dense(width: int, classes: int, last: bool, size: tuple[int, int] = (14, 16)) -> Build:
    def build() -> Case:
        labels = torch.randint(classes, (SAMPLES, *size))
        batch = (torch.randn(SAMPLES, 3, *size), labels)
        return Case(Dense(width, classes, last), batch, blocks=3, channel=1)

    return build


class UNet(nn.Module):
    """Two levels down and two up; skips go around the lower ones."""

    def __init__(self, last: bool) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())

        self.down1, self.down2 = block(3, 16), block(16, 32)
        self.middle = block(32, 32)
        self.up2, self.up1 = block(64, 16), block(32, 16)
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.head, self.is_last = nn.Conv2d(16, CLASSES, 1), last

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(self.pool(one))
        x = self.grow(self.middle(self.pool(two)))
        x = self.grow(self.up2(torch.cat([x, two], 1)))
        scores: Tensor = self.head(self.up1(torch.cat([x, one], 1)))
        return scores.permute(0, 2, 3, 1) if self.is_last else scores


def build_unet(last: bool) -> Build:
    def build() -> Case:
        batch = (torch.randn(SAMPLES, 3, 16, 16), torch.randint(CLASSES, (SAMPLES, 16, 16)))
        return Case(UNet(last), batch, blocks=5, channel=1, no_cuts="skips go around levels")

    return build


# --- other inputs ---------------------------------------------------------------------------------


class PointNet(nn.Module):
    """Points (N, P, 3), of which each is looked at alone."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU())
                for a, b in ((3, 16), (16, 16), (16, 32))
            )
        )
        self.hidden = nn.Sequential(nn.Linear(32, 16), nn.ReLU())
        self.last = nn.Linear(16, CLASSES)

    def forward(self, points: Tensor) -> Tensor:
        x = self.blocks(points.transpose(1, 2)).amax(2)
        scores: Tensor = self.last(self.hidden(x))
        return scores


class Segments(nn.Module):
    """Frames (N, F, C, H, W) are folded into the samples, and their scores averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
                for a in (3, 8, 8, 8)
            )
        )
        self.last = nn.Linear(8, CLASSES)

    def forward(self, clips: Tensor) -> Tensor:
        scores: Tensor = self.last(self.blocks(clips.flatten(0, 1)).mean((2, 3)))
        return scores.view(*clips.shape[:2], -1).mean(1)


class Tabular(nn.Module):
    """Categories and numbers in one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Linear(11, 16), nn.BatchNorm1d(16), nn.ReLU()),
            nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()),
        )
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embed(x[:, 0].long().clamp(0, 9))
        scores: Tensor = self.last(self.blocks(torch.cat([embedded, x[:, 1:]], 1)))
        return scores


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)), nn.Linear(8, CLASSES)
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        scores: Tensor = self.blocks(self.left(a) + self.right(b))
        return scores


def build_two_inputs() -> Case:
    inputs = (torch.randn(SAMPLES, 8), torch.randn(SAMPLES, 8))
    return Case(TwoInputs(), (inputs, make_labels(SAMPLES)), blocks=3, channel=1)


def build_mlp(outputs: int, targets: Callable[[], Tensor], *after: nn.Module) -> Build:
    def build() -> Case:
        widths = (12, 16, 16, 16, 16)
        pairs = pairwise(widths)
        blocks = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairs]
        model = nn.Sequential(nn.Flatten(), *blocks, nn.Linear(16, outputs), *after)
        return Case(model, (torch.randn(SAMPLES, 3, 4), targets()), blocks=4, channel=1)

    return build


def build_simple(model: type[nn.Module], shape: tuple[int, ...], blocks: int) -> Build:
    return lambda: Case(
        model(), (torch.randn(SAMPLES, *shape), make_labels(SAMPLES)), blocks=blocks
    )


CASES: Cases = {
    "conv1d_batchnorm": build_sound(nn.BatchNorm1d),
    "conv1d_groupnorm": build_sound(lambda width: nn.GroupNorm(4, width)),
    "conv1d_instancenorm": build_sound(lambda width: nn.InstanceNorm1d(width, affine=True)),
    "conv1d_prelu": build_sound(nn.PReLU),
    "conv1d_se": build_sound(Squeeze),
    "conv3d_batchnorm": build_volume(nn.BatchNorm3d),
    "conv3d_instancenorm": build_volume(lambda width: nn.InstanceNorm3d(width, affine=True)),
    "conv3d_prelu": build_volume(nn.PReLU),
    "m5": build_m5,
    "raw_sound_24": build_raw_sound(24),
    "raw_sound_32": build_raw_sound(32),
    "token_conv": build_token_conv,
    "dense_first": build_dense(16, CLASSES, last=False),
    "dense_first_square": build_dense(16, 16, last=False, size=(16, 16)),
    "dense_last": build_dense(16, CLASSES, last=True, size=(14, 12)),
    "dense_last_16": build_dense(16, CLASSES, last=True),
    "unet": build_unet(last=False),
    "unet_last": build_unet(last=True),
    "pointnet": build_simple(PointNet, (20, 3), 3),
    "tsn": build_simple(Segments, (3, 3, 12, 12), 5),
    "tabular": build_simple(Tabular, (8,), 3),
    "two_inputs": build_two_inputs,
    "mlp": build_mlp(CLASSES, lambda: make_labels(SAMPLES)),
    "regression": build_mlp(1, lambda: torch.randn(SAMPLES, 1)),
    "regression_flat": build_mlp(1, lambda: torch.randn(SAMPLES), nn.Flatten(0)),
    "multi_label": build_mlp(4, lambda: torch.randint(2, (SAMPLES, 4)).float()),
    "ignored_labels": build_mlp(CLASSES, lambda: torch.tensor([0, 1, -100, 2, -100, 3])),
}
