"""Small networks of blocks in float64, with an odd forward or odd blocks, and their training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import localprop as lp
from tests.helpers import reference
from tests.helpers.reference import ReferenceModel, assert_same_state, batches_of, sgd

BlocksForward = Callable[[nn.ModuleList, Tensor], Tensor]


class Block(nn.Module):
    """Linear, then Tanh; by itself a layer."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


class Pair(nn.Module):
    """A block that returns a tuple, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return torch.tanh(self.linear(x)), None


class Tower(nn.Module):
    """Blocks, a forward through them, and a classifier of three classes."""

    def __init__(self, forward_blocks: BlocksForward, count: int = 4) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.blocks = nn.ModuleList(Block() for _ in range(count))
        self.forward_blocks = forward_blocks
        self.head = nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.forward_blocks(self.blocks, x))
        return output

    def linear(self, index: int) -> nn.Linear:
        """The linear layer of a block."""
        return get_linear(self.blocks[index])


def get_linear(block: nn.Module) -> nn.Linear:
    """The linear layer of a block."""
    assert isinstance(block, Block)
    return block.linear


class PreActivated(nn.Module):
    """A layer that begins with an activation, which may overwrite the layer before's output."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.relu, self.linear = nn.ReLU(inplace), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(self.relu(x))
        return output


def build_preactivated(inplace: bool) -> nn.Sequential:
    """A network of four such layers between a Linear and a classifier."""
    torch.manual_seed(3)
    blocks = [PreActivated(inplace) for _ in range(4)]
    return nn.Sequential(nn.Linear(6, 6), *blocks, nn.Linear(6, 3)).double()


def forward_in_order(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    """One block after the other."""
    for block in blocks:
        x = block(x)
    return x


def build_learner(
    model: nn.Module, rule: lp.Rule, modules: int, *, recompute: bool = False
) -> lp.Learner:
    """A learner of a network with 6 inputs."""
    sample = batches_of((6,), 3)[0]
    return lp.Learner(
        model, rule, modules=modules, optimizer=sgd, sample=sample, recompute=recompute
    )


def check_against_reference(
    model: nn.Module, to_layers: reference.ToLayers, recompute: bool = False
) -> None:
    """Train by BackLink on single layers, whose gradients cross every cut, and by the reference."""
    batches = batches_of((6,), 3)
    count = len(lp.layers_of(model, batches[0]))
    learner = build_learner(model, lp.backlink(), modules=count, recompute=recompute)
    expected = ReferenceModel.of(learner, to_layers)
    reference.train(expected, reference.backlink(1), batches)
    for batch in batches:
        learner.step(batch)
    assert_same_state(model, expected.model, 1e-12)


def check_tower(
    tower: Tower,
    to_layers: Callable[[nn.ModuleList, nn.Linear], list[nn.Module]],
    recompute: bool = False,
) -> None:
    """`check_against_reference` for a tower, whose layers are given its blocks and classifier."""

    def split(model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, Tower)
        return to_layers(model.blocks, model.head)

    check_against_reference(tower, split, recompute)
