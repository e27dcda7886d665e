"""Every rule a second time, as obviously as possible; and the networks that the tests train, written out as lists of layers.

The forward is one connected autograd graph without any cut. The gradient of a loss with respect to the parameters of a
layer does not depend on what stands before that layer, so a stop-gradient at a module's input is nothing but the choice of
the parameters that :func:`torch.autograd.grad` is asked for: one call per pair of loss and module. Only contexts are
detached, since an error would otherwise run around the cut. Segments, flows and schedules are unknown here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp

# --- networks as lists of layers ------------------------------------------------------------------------------------------

ToLayers = Callable[[nn.Module], list[nn.Module]]  # a model's layers; parameters are the model's own


def tanh_mlp(width: int = 6, layers: int = 8) -> nn.Sequential:
    """Linear and Tanh in turn, and a classifier."""
    hidden = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(width, 3))


def layers_of_mlp(model: nn.Module) -> list[nn.Module]:
    parts = list(model.children())
    return [nn.Sequential(*parts[i : i + 2]) for i in range(0, len(parts), 2)]


def layers_of_cifar_resnet(model: nn.Module) -> list[nn.Module]:
    *blocks, last = model.blocks
    return [
        nn.Sequential(model.conv, model.bn, model.relu),
        *blocks,
        nn.Sequential(last, model.pool, nn.Flatten(), model.fc),
    ]


def layers_of_resnet18(model: nn.Module) -> list[nn.Module]:
    *blocks, last = [*model.layer1, *model.layer2, *model.layer3, *model.layer4]
    return [
        nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool),
        *blocks,
        nn.Sequential(last, model.avgpool, nn.Flatten(), model.fc),
    ]


class _Positions(nn.Module):
    """What a ViT does between its patches and its first block: a class token in front, positions added."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.token, self.positions = vit.cls_token, vit.pos_embed

    def forward(self, patches: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(patches), -1, -1), patches], 1) + self.positions


class Through(nn.Module):
    """Some modules, and a way of going through them."""

    def __init__(self, way: Callable[[nn.ModuleList, Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.blocks, self.way = nn.ModuleList(modules), way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.blocks, x)


def layers_of_vit(model: nn.Module) -> list[nn.Module]:
    first, *blocks, last = model.blocks
    return [
        model.patch_embed,
        nn.Sequential(_Positions(model), first),
        *blocks,
        Through(lambda b, x: b[2](b[1](b[0](x))[:, 0]), last, model.norm, model.head),
    ]


def tiny_vit() -> nn.Module:
    options = {"img_size": 32, "depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **options)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], ToLayers, tuple[int, ...], int]] = {
    "mlp": (tanh_mlp, layers_of_mlp, (6,), 3),
    "resnet8": (lp.models.resnet8, layers_of_cifar_resnet, (3, 8, 8), 10),
    "resnet14": (lp.models.resnet14, layers_of_cifar_resnet, (3, 8, 8), 10),
    "torchvision_resnet18": (
        lambda: torchvision.models.resnet18(num_classes=10),
        layers_of_resnet18,
        (3, 32, 32),
        10,
    ),
    "timm_vit": (tiny_vit, layers_of_vit, (3, 32, 32), 10),
}


def network(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A model of the table in float64, and three batches for it."""
    build, _, shape, classes = NETWORKS[name]
    torch.manual_seed(0)
    model = build().double()
    return model, batches_of(shape, classes)


def batches_of(shape: tuple[int, ...], classes: int, size: int = 7, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Batches of noise in float64."""
    noise = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, *shape, generator=noise, dtype=torch.float64),
            torch.randint(classes, (size,), generator=noise),
        )
        for _ in range(count)
    ]


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


# --- a partitioned network --------------------------------------------------------------------------------------------------


@dataclass
class Twin:
    """A copy of what a learner trains: the layers of each module (M_k), heads (A_k) and context encoders."""

    model: nn.Module
    modules: list[list[nn.Module]]
    heads: dict[int, nn.Module]
    encoders: dict[int, list[nn.Module]]
    image: bool = False  # E
    previous: int = 0  # n of R_n
    losses: list[dict[int, Tensor]] = field(default_factory=list)  # of every batch so far

    @classmethod
    def of(cls, learner: lp.Learner, to_layers: ToLayers, *, image: bool = False, previous: int = 0) -> Twin:
        model = copy.deepcopy(learner.model)
        layers = to_layers(model)
        assert len(layers) == len(learner.partition.layers)
        return cls(
            model,
            [[layers[i] for i in module] for module in learner.partition.modules],
            {int(k): copy.deepcopy(head["aux"]) for k, head in learner.heads.items()},
            {int(m): [copy.deepcopy(encoder) for encoder in own] for m, own in learner.encoders.items()},
            image,
            previous,
        )

    def outputs(self, image: Tensor) -> list[Tensor]:
        """h_k of every module, in one graph. Context as in the official code: a queue of module inputs, newest first."""
        queue: list[Tensor | None] = [None if self.image else image]
        h, outputs = image, []
        for k, layers in enumerate(self.modules):
            if k and self.encoders:
                contexts = [image] if self.image else []
                contexts += [entry for entry in queue[: self.previous] if entry is not None]
                for encoder, context in zip(self.encoders[k], contexts, strict=True):
                    h = h + encoder(context.detach())
                queue.insert(0, h)
            for layer in layers:
                h = layer(h)
            outputs.append(h)
        return outputs

    def layer(self, k: int, i: int) -> list[nn.Parameter]:
        """Parameters of layer i of module k; an encoder goes with the first layer of the module that receives."""
        received = [p for encoder in self.encoders.get(k, ()) for p in encoder.parameters()] if i == 0 else []
        return [p for p in (*self.modules[k][i].parameters(), *received) if p.requires_grad]

    def module(self, k: int) -> list[nn.Parameter]:
        """Parameters of all layers of module k."""
        return [p for i in range(len(self.modules[k])) for p in self.layer(k, i)]

    def tail(self, k: int, layers: int) -> list[nn.Parameter]:
        """Parameters of the last layers of module k."""
        count = len(self.modules[k])
        return [p for i in range(max(count - layers, 0), count) for p in self.layer(k, i)]


# --- the methods ------------------------------------------------------------------------------------------------------------

Losses = Mapping[int, Tensor]
Term = tuple[Tensor, list[nn.Parameter], float]  # a loss, the parameters that it trains, and its weight
Method = Callable[[Twin, Losses], list[Term]]


def greedy(twin: Twin, loss: Losses) -> list[Term]:
    """f_k by L_k."""
    return [(loss[k], twin.module(k), 1.0) for k in range(len(twin.modules))]


def end_to_end(twin: Twin, loss: Losses) -> list[Term]:
    """Everything by L_K."""
    last = len(twin.modules) - 1
    return [(loss[last], twin.module(k), 1.0) for k in range(last + 1)]


def backlink(layers: int, weight: float = 1.0) -> Method:
    """f_k by L_k; its last layers also by weight * L_{k+1}."""

    def terms(twin: Twin, loss: Losses) -> list[Term]:
        links = [(loss[k + 1], twin.tail(k, layers), weight) for k in range(len(twin.modules) - 1)]
        return greedy(twin, loss) + links

    return terms


def interlocking(wise: int) -> Method:
    """f_k by L_{min(k + wise - 1, K)} alone."""

    def terms(twin: Twin, loss: Losses) -> list[Term]:
        last = len(twin.modules) - 1
        return [(loss[min(k + wise - 1, last)], twin.module(k), 1.0) for k in range(last + 1)]

    return terms


def auglocal(joined: int) -> Method:
    """f_k by L_k, but the last joined + 1 modules by L_K."""

    def terms(twin: Twin, loss: Losses) -> list[Term]:
        last = len(twin.modules) - 1
        return [(loss[k if k < last - joined else last], twin.module(k), 1.0) for k in range(last + 1)]

    return terms


# --- training ---------------------------------------------------------------------------------------------------------------


def gradients(twin: Twin, method: Method, images: Tensor, targets: Tensor, parts: int) -> dict[nn.Parameter, Tensor]:
    """Sum of all terms, each part of the batch weighing its share of it; A_k by L_k alone."""
    total: dict[nn.Parameter, Tensor] = {}
    twin.losses.append({})
    for x, y in zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True):
        share, outputs = len(x) / len(images), twin.outputs(x)
        loss = {k: functional.cross_entropy(head(outputs[k]), y) for k, head in twin.heads.items()}
        own = [(loss[k], list(head.parameters()), 1.0) for k, head in twin.heads.items()]
        for value, parameters, weight in (*method(twin, loss), *own):
            found = torch.autograd.grad(value, parameters, retain_graph=True) if parameters else ()
            for parameter, gradient in zip(parameters, found, strict=True):
                total[parameter] = total.get(parameter, 0) + share * weight * gradient
        for k, value in loss.items():
            twin.losses[-1][k] = twin.losses[-1].get(k, 0) + share * value.detach()
    return total


def train(
    twin: Twin,
    method: Method,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    parts: int = 1,
    lr: float = 0.05,
    momentum: float = 0.9,
) -> None:
    """SGD with momentum, every parameter moved once per batch."""
    velocity: dict[nn.Parameter, Tensor] = {}
    for images, targets in batches:
        found = gradients(twin, method, images, targets, parts)
        with torch.no_grad():
            for parameter, gradient in found.items():
                velocity[parameter] = momentum * velocity.get(parameter, 0) + gradient
                parameter -= lr * velocity[parameter]


# --- comparing --------------------------------------------------------------------------------------------------------------


def assert_same_state(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    """Parameters and buffers are equal, by name."""
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


def assert_moved(before: nn.Module, after: nn.Module) -> None:
    """Every parameter differs, so that equality elsewhere means something."""
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    assert [name for (name, a), b in pairs if torch.equal(a, b)] == []
