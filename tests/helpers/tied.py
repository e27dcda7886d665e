"""Networks in float64 whose layers share parameters, and their training as plainly as possible.

The reference knows nothing of ties: each layer is copied with parameters of its own, the losses'
gradients of these are worked out as for any network, and those of one shared parameter are added.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp
from tests.helpers.language_models import language_model, layers_of_language_model
from tests.helpers.reference import (
    NO_CONTEXT,
    Batches,
    Context,
    Method,
    ReferenceModel,
    Term,
    Through,
    ToLayers,
    add_gradients,
    batches_of,
    children_of,
)


class Dense(nn.Module):
    """tanh(W x + b)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.bias = nn.Parameter(0.1 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(functional.linear(x, self.weight, self.bias))


def build_chain() -> nn.Module:
    """Layers that are no neighbours share a weight; others a weight and a bias."""
    torch.manual_seed(5)
    layers = [Dense() for _ in range(7)]
    layers[4].weight = layers[1].weight
    layers[5].weight = layers[3].weight = layers[0].weight
    layers[5].bias = layers[2].bias
    return nn.Sequential(*layers, nn.Linear(6, 3)).double()


class Attention(nn.Module):
    """A block of attention whose scores depend on positions by a table."""

    def __init__(self, table: nn.Parameter, width: int = 6) -> None:
        super().__init__()
        self.table = table
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        place = torch.arange(x.shape[1])
        bias = self.table[place[:, None] - place + len(self.table) // 2]
        output: Tensor = x + (query @ key.transpose(1, 2) + bias).softmax(-1) @ value
        return output


class Positions(nn.Module):
    """Blocks that all use one table of position biases."""

    def __init__(self) -> None:
        super().__init__()
        table = nn.Parameter(torch.randn(9))
        self.blocks = nn.ModuleList(Attention(table) for _ in range(5))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(1))
        return logits


def build_positions() -> nn.Module:
    torch.manual_seed(6)
    return Positions().double()


def layers_of_positions(model: nn.Module) -> list[nn.Module]:
    *blocks, last = children_of(model, "blocks")
    head = model.get_submodule("head")
    return [*blocks, Through(lambda b, x: b[1](b[0](x).mean(1)), last, head)]


class Convolutions(nn.Module):
    """Convolutions of one width, some of which share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()) for _ in range(5))
        )
        weight = self.blocks.get_parameter("0.0.weight")
        for i in (2, 4):
            self.blocks.get_submodule(f"{i}.0").register_parameter("weight", weight)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def build_convolutions() -> nn.Module:
    torch.manual_seed(7)
    return Convolutions().double()


def layers_of_convolutions(model: nn.Module) -> list[nn.Module]:
    *blocks, last = children_of(model, "blocks")
    head = model.get_submodule("head")
    return [
        model.get_submodule("stem"),
        *blocks,
        Through(lambda b, x: b[1](b[0](x).mean((2, 3))), last, head),
    ]


class Network(NamedTuple):
    """A network, its batches, its layers, and the first names of its shared parameters."""

    build: Callable[[], nn.Module]
    batches: Callable[[], Batches]
    to_layers: ToLayers
    tied: tuple[str, ...]


NETWORKS = {
    "language model": Network(
        lambda: language_model(tied=True)[0],
        lambda: language_model()[1],
        layers_of_language_model,
        ("embed.tokens.weight",),
    ),
    "chain": Network(
        build_chain,
        lambda: batches_of((6,), 3),
        lambda model: list(model.children()),
        ("0.weight", "1.weight", "2.bias"),
    ),
    "positions": Network(
        build_positions,
        lambda: batches_of((5, 6), 3),
        layers_of_positions,
        ("blocks.0.table",),
    ),
    "convolutions": Network(
        build_convolutions,
        lambda: batches_of((3, 4, 4), 3),
        layers_of_convolutions,
        ("blocks.0.0.weight",),
    ),
}
Named = dict[str, Tensor]


class TiedReference:
    """A learner's network with untied copies of its layers, its heads and its encoders.

    Args:
        learner: copied as it is.
        to_layers: its layers.
        context: that the encoders take.
    """

    def __init__(
        self, learner: lp.Learner, to_layers: ToLayers, context: Context = NO_CONTEXT
    ) -> None:
        names = {id(p): name for name, p in learner.model.named_parameters()}
        self.name_of: dict[nn.Parameter, str] = {}

        def untie(_: nn.Module) -> list[nn.Module]:
            layers = to_layers(learner.model)
            untied = [copy.deepcopy(layer) for layer in layers]
            for layer, own in zip(layers, untied, strict=True):
                pairs = zip(own.parameters(), layer.parameters(), strict=True)
                self.name_of |= {one: names[id(other)] for one, other in pairs}
            return untied

        self.reference = ReferenceModel.of(learner, untie, context)
        for kind, modules in (
            ("heads", self.reference.heads),
            ("encoders", {m: nn.ModuleList(e) for m, e in self.reference.encoders.items()}),
        ):
            for number, module in modules.items():
                inner = f"{number}.aux." if kind == "heads" else f"{number}."
                for name, parameter in module.named_parameters():
                    self.name_of[parameter] = f"{kind}.{inner}{name}"
        self.velocity: Named = {}

    def gradients(
        self, method: Method, batch: tuple[Tensor, Tensor], microbatches: int = 1
    ) -> Named:
        """The gradients of a batch, by name; those of untied copies are added."""
        total: dict[nn.Parameter, Tensor] = {}
        parts = zip(*(part.tensor_split(microbatches) for part in batch), strict=True)
        for x, y in parts:
            share, outputs = len(x) / len(batch[0]), self.reference.outputs(x)
            losses = {
                k: functional.cross_entropy(head(outputs[k]).flatten(0, -2), y.flatten())
                for k, head in self.reference.heads.items()
            }
            heads = [
                Term(losses[k], list(head.parameters())) for k, head in self.reference.heads.items()
            ]
            for term in (*method(self.reference, losses), *heads):
                add_gradients(total, term._replace(weight=share * term.weight))
        named: Named = {}
        for parameter, gradient in total.items():
            name = self.name_of[parameter]
            named[name] = named.get(name, 0) + gradient
        return named

    @torch.no_grad()
    def step(self, gradients: Named, lr: float = 0.05, momentum: float = 0.9) -> None:
        """SGD with momentum as `reference.sgd` does it; copies of one parameter stay equal."""
        for name, gradient in gradients.items():
            self.velocity[name] = momentum * self.velocity.get(name, 0) + gradient
        for parameter, name in self.name_of.items():
            parameter.sub_(lr * self.velocity.get(name, torch.zeros(())))

    def parameters(self) -> Named:
        """All parameters by name."""
        return {name: parameter.detach() for parameter, name in self.name_of.items()}
