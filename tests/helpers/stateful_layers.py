"""Layers with state of every kind, which must run again without counting twice."""

from __future__ import annotations

import collections
import copy
import random
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

WIDTH = 6


class Block(nn.Module):
    """A layer that saves more than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(x.sin().exp()).sin().exp() * self.weigh(x)
        return output

    def weigh(self, x: Tensor) -> Any:
        return 1.0


class CountsCalls(Block):
    """An annealed temperature, counted in Python."""

    calls = 0

    def weigh(self, x: Tensor) -> float:
        self.calls += 1
        return 1 / self.calls


class CountsInTensor(Block):
    """The same in a plain tensor attribute, which is replaced, and in one that is written into."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced, self.written = torch.zeros(()), torch.zeros(2)

    def weigh(self, x: Tensor) -> Tensor:
        self.replaced = self.replaced + 1
        self.written[1] += 1
        return 1 / (self.replaced + self.written[1])


class CountsInBuffer(Block):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def weigh(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 1 / self.calls.float()


class CountsInContainers(Block):
    def __init__(self) -> None:
        super().__init__()
        self.listed: list[float] = []
        self.queued: deque[int] = deque(maxlen=3)
        self.counts: dict[str, Any] = {"calls": 0, "inner": [0]}
        self.seen = {0}

    def weigh(self, x: Tensor) -> float:
        self.listed.append(float(x.mean()))
        self.queued.append(len(self.listed))
        self.counts["calls"] += 1
        self.counts["inner"][0] += 2
        self.seen.add(len(self.seen))
        return 1 / (sum(self.queued) + len(self.seen) + self.counts["inner"][0])  # type: ignore[no-any-return]


class CountsElsewhere(Block):
    """In arrays, within a tuple, and in a Counter."""

    def __init__(self) -> None:
        super().__init__()
        self.array, self.pair = numpy.zeros(2), ([0], "name")
        self.counter = collections.Counter({"calls": 1})
        self.same = self.pair[0]

    def weigh(self, x: Tensor) -> float:
        self.array[0] += 1
        self.pair[0][0] += 1
        self.counter["calls"] += 1
        return 1 / (float(self.array[0]) + self.same[0] + self.counter["calls"])


class CountsUpAndDown(Block):
    """Is within a call only until it returns."""

    depth = 0

    def forward(self, x: Tensor) -> Tensor:
        self.depth += 1
        output = super().forward(x / self.depth)
        self.depth -= 1
        return output


class RemovesItsHook(Block):
    """Hooks a part of its own until it returns."""

    def forward(self, x: Tensor) -> Tensor:
        handle = self.linear.register_forward_hook(lambda _module, _args, output: output * 2)
        output = super().forward(x)
        handle.remove()
        return output


class FallsBack(Block):
    """Takes any exception for a reason to go another way."""

    is_fused = True

    def forward(self, x: Tensor) -> Tensor:
        try:
            return super().forward(x)
        except Exception:
            self.is_fused = False
            return x


class Attends(Block):
    """Attention of a sequence to itself, which asks whether its arguments are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.attention(x, x, x)[0]
        return super().forward(output)


class Remembers(Block):
    """A recurrent layer, whose kernel saves bytes that mean nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_sequence([x])
        output: Tensor = self.memory(packed)[0].data
        return super().forward(output)


class AddsAttributes(Block):
    """Its first call adds what was not there."""

    def weigh(self, x: Tensor) -> float:
        self.times = getattr(self, "times", 0) + 1
        return 1 / self.times


class DrawsEverywhere(Block):
    """Of torch, Python and numpy, and of generators of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.Generator().manual_seed(1)
        self.python, self.numbers = random.Random(2), numpy.random.RandomState(3)

    def weigh(self, x: Tensor) -> Any:
        drawn = random.random() + numpy.random.normal() + self.python.random() + self.numbers.rand()
        noise = functional.dropout(torch.ones_like(x), 0.5) + torch.rand(WIDTH, generator=self.own)
        return noise * drawn


class SometimesDraws(Block):
    """Draws of numpy in some calls only; a layer is skipped at random."""

    calls = 0

    def weigh(self, x: Tensor) -> float:
        self.calls += 1
        return float(numpy.random.rand() > 0.5) + 0.5 if self.calls > 2 else 1.0


class Codebook(Block):
    """A moving average of what was seen, written through `.data` (van den Oord et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: Tensor
        self.register_buffer("codes", torch.randn(4, WIDTH))

    def weigh(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.codes).argmin(1)
        chosen = functional.one_hot(nearest, 4).float()
        means = chosen.T @ x.detach() / (chosen.sum(0)[:, None] + 1)
        self.codes.data.mul_(0.9).add_(means, alpha=0.1)
        return 1 + self.codes[nearest]


class MomentumEncoder(Block):
    """A copy whose weights follow those of the layer (He et al. 2020, arXiv 1911.05722)."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = copy.deepcopy(self.linear).requires_grad_(False)

    def weigh(self, x: Tensor) -> Tensor:
        for slow, fast in zip(self.slow.parameters(), self.linear.parameters(), strict=True):
            slow.data = slow.data * 0.9 + fast.data * 0.1
        with torch.no_grad():
            weight: Tensor = 1 + self.slow(x).sigmoid()
        return weight


class LateAverage(Codebook):
    """Its buffer begins to move in the third step."""

    calls = 0

    def weigh(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls >= 3:
            self.codes += 0.1
        return 1 + self.codes.mean()


class Normed(Block):
    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH, momentum=momentum)

    def weigh(self, x: Tensor) -> Tensor:
        return self.norm(x).sin().sin()  # type: ignore[no-any-return]


class Dropped(Block):
    def weigh(self, x: Tensor) -> Tensor:
        return functional.dropout(x.sin().sin(), 0.5)


class Checkpointed(Dropped):
    """Checkpoints a part of its own."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = checkpoint(super().forward, x, use_reentrant=False).sin().sin()
        return output


class Overwrites(Block):
    """Writes into its input, as a block does that begins with an in-place ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.relu(x, inplace=True))


class TakesMore(Block):
    """Gets constants by name, one of them within a dict."""

    def forward(
        self, x: Tensor, *, scale: Tensor | None = None, more: dict[str, Tensor] | None = None
    ) -> Tensor:
        scale = torch.ones(()) if scale is None else scale
        return super().forward(x) * scale * (1.0 if more is None else more["mask"])


class OneTensor(nn.Module):
    """Gives a layer one tensor three times."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.attention(x, x, x)[0]
        return output


class PassesMore(nn.Module):
    """Gives a layer tensors of its own, and casts it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = TakesMore(), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        more = {"mask": (x > -1).float()}
        with torch.autocast("cpu", torch.bfloat16):
            y = self.layer(x, scale=self.scale.sin(), more=more)
        return y.float()  # type: ignore[no-any-return]


def wrap(norm: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        block = Block()
        block.linear = norm(block.linear)  # type: ignore[assignment]
        return block

    return build


def build_fake_quantized() -> nn.Module:
    """As in training that knows of quantisation: observers follow the weights and the features."""
    quantize: Any = FakeQuantize
    block = nn.Sequential(
        nn.Linear(WIDTH, WIDTH),
        quantize(observer=MovingAverageMinMaxObserver),
        nn.Sigmoid(),
        quantize(
            observer=MovingAveragePerChannelMinMaxObserver,
            ch_axis=1,
            qscheme=torch.per_channel_affine,
            dtype=torch.qint8,
            quant_min=-128,
            quant_max=127,
        ),
    )

    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = block

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).sin().sin()  # type: ignore[no-any-return]

    return Quantized()


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(module)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "counts calls": CountsCalls,
    "counts in a tensor": CountsInTensor,
    "counts in a buffer": CountsInBuffer,
    "counts in containers": CountsInContainers,
    "counts elsewhere": CountsElsewhere,
    "counts up and down": CountsUpAndDown,
    "removes its hook": RemovesItsHook,
    "falls back": FallsBack,
    "attends": Attends,
    "remembers": Remembers,
    "one tensor": OneTensor,
    "adds attributes": AddsAttributes,
    "draws everywhere": DrawsEverywhere,
    "sometimes draws": SometimesDraws,
    "codebook": Codebook,
    "momentum encoder": MomentumEncoder,
    "late average": LateAverage,
    "batch norm": Normed,
    "cumulative batch norm": lambda: Normed(None),
    "dropout": Dropped,
    "checkpointed": Checkpointed,
    "overwrites": Overwrites,
    "takes more": PassesMore,
    "spectral norm": wrap(parametrizations.spectral_norm),
    "old spectral norm": wrap(old_spectral_norm),
    "weight norm": wrap(parametrizations.weight_norm),
    "old weight norm": wrap(old_weight_norm),
    "fake quantised": build_fake_quantized,
}
