"""Hand-written models whose blocks do what real code does: keep, count, draw, look at values."""

from __future__ import annotations

import random
import threading
from typing import Any

import torch
from cases import Build, Case, Cases, make_labels
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

WIDTH, BLOCKS, COUNT, LABELS = 8, 4, 6, 3


class Plain(nn.Module):
    """Blocks of one width. Others change `make`, what is `set_up`, or how a block is `run`."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.make() for _ in range(BLOCKS))
        self.last = nn.Linear(WIDTH, LABELS)
        self.set_up()

    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())

    def set_up(self) -> None:
        """Add what a model has besides its blocks."""

    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        output: Tensor = block(x)
        return output

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = self.run(i, block, x)
        scores: Tensor = self.last(x)
        return scores


class LooksAtValues(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        return super().run(i, block, x if x.abs().max() < 1e6 else x / 2)


class HoldsALock(Plain):
    def set_up(self) -> None:
        self.lock = threading.Lock()


class CatchesAnError(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        try:
            output: Tensor = block(x, lengths=None)
        except TypeError:
            output = block(x)
        return output


class KeepsFeatures(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        self.seen = super().run(i, block, x)
        return self.seen


class MakesATable(Plain):
    """A table of positions that the first forward makes."""

    def set_up(self) -> None:
        self.table: Tensor | None = None

    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(float(WIDTH)).sin()
        return super().run(i, block, x + self.table)


class Counts(Plain):
    def set_up(self) -> None:
        self.register_buffer("forwards", torch.zeros((), dtype=torch.long))
        self.total, self.number = torch.zeros(1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("forwards").add_(1)
        self.total += 1
        self.number += 1
        return super().forward(x + self.number)


class TensorAttribute(Plain):
    def set_up(self) -> None:
        self.positions = torch.randn(WIDTH)

    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        return super().run(i, block, x + self.positions)


class Norm(Plain):
    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())


class CumulativeNorm(Plain):
    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH, momentum=None))


class Dropout(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        return functional.dropout(super().run(i, block, x), 0.5, self.training)


class DrawsBetween(Dropout):
    """Draws between blocks, as layer dropout of a probability of 0 does."""

    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        torch.rand([])
        return super().run(i, block, x)


class DrawsInPython(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        return super().run(i, block, x) * (1 + random.random())


class SkipsAtRandom(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        skips = self.training and bool(torch.rand([]) < 0.3)
        return x if skips else super().run(i, block, x)


class SkipsByPython(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        skips = self.training and random.random() < 0.3
        return x if skips else super().run(i, block, x)


class Routes(Plain):
    """Experts that get the samples chosen for them, by their places."""

    def set_up(self) -> None:
        self.routers = nn.ModuleList(nn.Linear(WIDTH, 3) for _ in range(BLOCKS))
        self.experts = nn.ModuleList(
            nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)) for _ in range(BLOCKS)
        )

    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        weights, chosen = self.routers[i](x).softmax(-1).max(-1)
        output = torch.zeros_like(x)
        experts: Any = self.experts[i]
        for number, expert in enumerate(experts):
            places = (chosen == number).nonzero().flatten()
            output[places] = weights[places, None] * expert(x[places])
        return super().run(i, block, x + output)


class OnAGraph(Plain):
    """Nodes with edges, of which those to a node itself are left out."""

    def set_up(self) -> None:
        self.register_buffer("edges", torch.randint(COUNT, (2, 12)))

    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        edges = self.get_buffer("edges")
        start, end = edges[:, edges[0] != edges[1]]
        output = super().run(i, block, x)
        return output.index_add(0, end, output[start])


class Transforms(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(super().run(i, block, x))
        signal: Tensor = torch.fft.irfft(spectrum, n=WIDTH)
        return signal


class Quantizes(Plain):
    """A codebook that the first batch fills, and that moves with each batch."""

    def set_up(self) -> None:
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))
        self.register_buffer("codes", torch.randn(5, WIDTH))

    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        output, codes = super().run(i, block, x), self.get_buffer("codes")
        if not self.get_buffer("filled"):
            codes.copy_(output.detach()[:5])
            self.get_buffer("filled").fill_(True)
        nearest = codes[torch.cdist(output, codes).argmin(-1)]
        if self.training:
            codes.mul_(0.99)
        return output + (nearest - output).detach()


class Checkpoints(Plain):
    reentrant = False

    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        output: Tensor = checkpoint(block, x, use_reentrant=self.reentrant)
        return output


class CheckpointsReentrantly(Checkpoints):
    reentrant = True


class Autocasts(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().run(i, block, x).float()


class ReadsALength(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        length = int(torch.tensor([WIDTH] * len(x)).max().item())
        return super().run(i, block, x[:, :length])


class RefusesNan(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        if torch.isnan(x).any():
            raise RuntimeError("not a number")
        return super().run(i, block, x)


class UsesNumpy(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        return super().run(i, block, x + torch.from_numpy(x.detach().numpy() * 0))


class ReadsAWeight(Plain):
    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        weight = block.get_parameter("0.weight")
        return super().run(i, block, x) * (1 if float(weight.detach().abs().mean()) < 9 else 2)


class AddsOutside(Plain):
    """The residual is added after the block, so that no module returns the sum."""

    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        return super().run(i, block, x).tanh() + x


class WritesInPlace(Plain):
    def make(self) -> nn.Module:
        return nn.Linear(WIDTH, WIDTH)

    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        return super().run(i, block, x).mul_(2)


class SharesABias(Plain):
    """Blocks hand on a tuple of features and of what they all share."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            return self.linear(x) + bias, bias

    def make(self) -> nn.Module:
        return self.Block()

    def set_up(self) -> None:
        self.bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias * 2
        for block in self.blocks:
            x, bias = block(x, bias=bias)
        scores: Tensor = self.last(x)
        return scores


class DetachedBypass(Plain):
    """What goes around a block has no gradient."""

    def run(self, i: int, block: nn.Module, x: Tensor) -> Tensor:
        return super().run(i, block, x) + 0.1 * x.detach().mean()


class CalledAgain(Plain):
    """One block that is run several times."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(BLOCKS):
            x = self.run(0, self.blocks[0], x)
        scores: Tensor = self.last(x)
        return scores


class Compiled(Plain):
    def make(self) -> nn.Module:
        return torch.compile(super().make(), backend="eager")  # type: ignore[return-value]


def build(model: type[Plain], **fields: Any) -> Build:
    """A constructor of a case with a batch of vectors."""

    def build_case() -> Case:
        batch = (torch.randn(COUNT, WIDTH), make_labels(COUNT, LABELS))
        return Case(model(), batch, **{"blocks": BLOCKS, "channel": 1, **fields})

    return build_case


CASES: Cases = {
    "blocks": build(Plain),
    "value_in_forward": build(LooksAtValues),
    "lock": build(HoldsALock),
    "caught_error": build(CatchesAnError),
    "keeps_features": build(KeepsFeatures),
    "makes_a_table": build(MakesATable),
    "counter": build(Counts),
    "tensor_attribute": build(TensorAttribute),
    "batchnorm": build(Norm),
    "batchnorm_cumulative": build(CumulativeNorm),
    "dropout": build(Dropout),
    "draws_between": build(DrawsBetween),
    "draws_in_python": build(DrawsInPython),
    "layerdrop": build(SkipsAtRandom, no_cuts="a random draw decides which blocks run"),
    "layerdrop_python": build(SkipsByPython, no_cuts="a random draw decides which blocks run"),
    "experts_by_index": build(Routes),
    "graph_edges": build(OnAGraph),
    "fourier": build(Transforms),
    "quantizes": build(Quantizes),
    "checkpointed": build(Checkpoints),
    "checkpointed_reentrant": build(CheckpointsReentrantly),
    "autocast": build(Autocasts),
    "reads_a_length": build(ReadsALength),
    "refuses_nan": build(RefusesNan),
    "numpy": build(UsesNumpy),
    "reads_a_weight": build(ReadsAWeight),
    "residual_outside": build(AddsOutside, no_cuts="no module returns the sum"),
    "writes_in_place": build(WritesInPlace),
    "shares_a_bias": build(SharesABias, no_cuts="all blocks read a bias"),
    "detached_bypass": build(DetachedBypass),
    "called_again": build(CalledAgain, no_cuts="no call of a module that runs again is a cut"),
    "compiled_blocks": build(Compiled),
}
