"""A small residual network that all methods train, with random numbers and writes in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import localprop as lp
from tests.helpers.layers import cut_once
from tests.helpers.methods import Method
from tests.helpers.reference import sgd

Batch = tuple[Tensor, Tensor]

WIDTH = 4
MIDDLE = "4"  # the block in the middle


class Block(nn.Module):
    """A residual block of constant width that draws random numbers and writes into activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.dropout = nn.Dropout(0.2)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDTH)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.relu(self.bn1(self.conv1(x))))
        output: Tensor = self.relu(x + self.bn2(self.conv2(hidden)))
        return output


def build_network() -> nn.Sequential:
    """A stem, three blocks and a classifier: five layers."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    blocks = [Block() for _ in range(3)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 4)]
    return nn.Sequential(*stem, *blocks, *head)


def make_batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(4, 3, 8, 8, generator=generator), torch.arange(4)) for _ in range(count)]


BATCHES = make_batches(4)


def make_learner(method: Method, options: dict[str, Any]) -> lp.Learner:
    if method is lp.sgr:  # a second-order loss needs the graph of the first forward
        options = {**options, "recompute": False}
    model = build_network()
    return lp.Learner(
        model,
        method(),
        partition=cut_once(model, BATCHES[0], 4),
        optimizer=sgd,
        sample=BATCHES[0],
        normalization=lp.Normalization(),
        **options,
    )
