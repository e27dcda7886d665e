"""Small networks in which something goes around the cuts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class UNet(nn.Module):
    """Each decoder block reads the output of an encoder block, or a constant like it."""

    def __init__(self, *, detached: bool = False) -> None:
        super().__init__()
        self.detached = detached
        self.down = nn.ModuleList([conv(3, 8), conv(8, 8), conv(8, 8)])
        self.middle = conv(8, 8)
        self.up = nn.ModuleList([conv(16, 8) for _ in range(3)])
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            # That of the last block goes around no cut: up.0 and the middle are one layer.
            skips.append(x.detach() if self.detached and block is not self.down[2] else x)
            x = functional.max_pool2d(x, 2)
        x = self.middle(x)
        for block in self.up:
            x = block(torch.cat([functional.interpolate(x, scale_factor=2), skips.pop()], 1))
        logits: Tensor = self.out(x)
        return logits


class Dense(nn.Module):
    """Each block reads the outputs of all before."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv(3 + 4 * i, 4) for i in range(6))
        self.out = nn.Conv2d(3 + 4 * 6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for block in self.blocks:
            features.append(block(torch.cat(features, 1)))
        logits: Tensor = self.out(torch.cat(features, 1))
        return logits


class Pair(nn.Module):
    """A block that returns a hidden state and a residual, which may be written into."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.block = conv(4, 4)

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        if self.in_place:
            residual.mul_(0.5)
        return self.block(hidden + residual), residual.tanh() + hidden


class Pairs(nn.Module):
    """Blocks that hand on a pair of tensors."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList(Pair(in_place=in_place) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden, residual = self.stem(x), self.stem(x.flip(1))
        for block in self.blocks:
            hidden, residual = block(hidden, residual)
        output: Tensor = hidden + residual
        return output


class Towers(nn.Module):
    """Two towers, one after the other; the second knows nothing of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(conv(3, 4), conv(4, 4), conv(4, 4))
        self.right = nn.Sequential(conv(3, 4), conv(4, 4), conv(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x.flip(2))
        output: Tensor = left * right
        return output


class Branch(nn.Module):
    """A skip around two blocks of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([conv(3, 4), conv(4, 4), conv(4, 4), conv(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        first = self.blocks[0](x)
        output: Tensor = self.blocks[3](first + self.blocks[2](self.blocks[1](first)))
        return output


class Residuals(nn.Module):
    """Residuals are added outside of the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.layers = nn.ModuleList(nn.ModuleList([conv(4, 4), conv(4, 4)]) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for pair in self.layers:
            first, second = pair.children()
            x = first(x) + x
            x = second(x) * 0.5 + x
        return x


class Cell(nn.Module):
    """It reads what the last two cells have returned."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(4, 4), conv(4, 4)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        output: Tensor = self.one(x) + self.two(before)
        return output


class Cells(nn.Module):
    """Cells that stand in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.cell_0, self.cell_1, self.cell_2, self.cell_3 = (Cell() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        before = x = self.stem(x)
        for cell in (self.cell_0, self.cell_1, self.cell_2, self.cell_3):
            before, x = x, cell(x, before)
        return x


class Stage(nn.Module):
    """All cells read a query, which is made by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.before = conv(4, 4)
        self.cells = nn.ModuleList(Cell() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        query = self.before(x).transpose(2, 3).sigmoid()
        for cell in self.cells:
            x = cell(x, query)
        return x


class Halves(nn.Module):
    """Blocks change one half of the channels, while the other goes around them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = conv(3, 8), nn.Conv2d(8, 4, 1)
        self.blocks = nn.ModuleList(conv(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        kept, x = self.stem(x).chunk(2, 1)
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.out(torch.cat([kept, x], 1))
        return output


MODELS: dict[str, Callable[[], nn.Module]] = {
    "cells": Cells,
    "stages": lambda: nn.Sequential(conv(3, 4), Stage(), Stage()),
    "halves": Halves,
    "U-Net": UNet,
    "dense": Dense,
    "pairs": lambda: Pairs(in_place=False),
    "pairs in place": lambda: Pairs(in_place=True),
    "towers": Towers,
    "branch": Branch,
    "residuals": Residuals,
}
