"""Every rule a second time, as plainly as possible, and the networks that the tests train.

The forward is one connected autograd graph without any cut. The gradient of a loss with respect to
the parameters of a layer does not depend on what comes before that layer. So a stop-gradient at a
module's input only decides which parameters `torch.autograd.grad` is asked for: one call per pair
of loss and module. Only contexts are detached, because a gradient would run around the cut through
them. This file knows nothing of segments, flows and schedules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import localprop as lp

Batches = list[tuple[Tensor, Tensor]]

# --- networks as lists of layers --------------------------------------------------------------

# Returns a model's layers; they hold the model's own parameters.
ToLayers = Callable[[nn.Module], list[nn.Module]]


def tanh_mlp(width: int = 6, layers: int = 8) -> nn.Sequential:
    """Linear and Tanh in turn, and a classifier."""
    hidden: list[nn.Module] = []
    for _ in range(layers - 1):
        hidden += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*hidden, nn.Linear(width, 3))


def children_of(model: nn.Module, path: str) -> list[nn.Module]:
    """The children of a submodule."""
    return list(model.get_submodule(path).children())


def layers_of_mlp(model: nn.Module) -> list[nn.Module]:
    children = list(model.children())
    return [nn.Sequential(*children[i : i + 2]) for i in range(0, len(children), 2)]


def layers_of_cifar_resnet(model: nn.Module) -> list[nn.Module]:
    stem = [model.get_submodule(name) for name in ("conv", "bn", "relu")]
    pool, fc = (model.get_submodule(name) for name in ("pool", "fc"))
    *blocks, last = children_of(model, "blocks")
    return [nn.Sequential(*stem), *blocks, nn.Sequential(last, pool, nn.Flatten(), fc)]


def layers_of_resnet18(model: nn.Module) -> list[nn.Module]:
    stem = [model.get_submodule(name) for name in ("conv1", "bn1", "relu", "maxpool")]
    pool, fc = (model.get_submodule(name) for name in ("avgpool", "fc"))
    *blocks, last = [b for i in range(1, 5) for b in children_of(model, f"layer{i}")]
    return [nn.Sequential(*stem), *blocks, nn.Sequential(last, pool, nn.Flatten(), fc)]


class _Positions(nn.Module):
    """What a ViT does between its patches and its first block: adds a class token and positions."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.token, self.positions = (vit.get_parameter(p) for p in ("cls_token", "pos_embed"))

    def forward(self, patches: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(patches), -1, -1), patches], 1) + self.positions


Forward = Callable[[nn.ModuleList, Tensor], Tensor]


class Through(nn.Module):
    """Some modules, and a function that computes an output with them."""

    def __init__(self, run: Forward, *modules: nn.Module) -> None:
        super().__init__()
        self.blocks, self.run = nn.ModuleList(modules), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.blocks, x)


def layers_of_vit(model: nn.Module) -> list[nn.Module]:
    patch_embed, norm, head = (model.get_submodule(p) for p in ("patch_embed", "norm", "head"))
    first, *blocks, last = children_of(model, "blocks")
    return [
        patch_embed,
        nn.Sequential(_Positions(model), first),
        *blocks,
        Through(lambda b, x: b[2](b[1](b[0](x))[:, 0]), last, norm, head),
    ]


def tiny_vit() -> nn.Module:
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=4, embed_dim=48, num_heads=3, num_classes=10
    )
    return model


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


def network(name: str) -> tuple[nn.Module, Batches]:
    """A model of the table in float64, and three batches for it."""
    build, _, shape, classes = NETWORKS[name]
    torch.manual_seed(0)
    model = build().double()
    return model, batches_of(shape, classes)


def batches_of(shape: tuple[int, ...], classes: int, size: int = 7, count: int = 3) -> Batches:
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


# --- a partitioned network --------------------------------------------------------------------


class Context(NamedTuple):
    """The context that modules receive.

    Attributes:
        image: whether they receive the network's input (E).
        previous: from how many earlier modules they receive the input (n of R_n).
    """

    image: bool = False
    previous: int = 0


NO_CONTEXT = Context()


@dataclass
class ReferenceModel:
    """A copy of what a learner trains.

    Attributes:
        model: the network.
        modules: the layers of each module (M_k).
        heads: the auxiliary networks (A_k), by the number of the loss.
        encoders: the context encoders, by the number of the receiving module.
        context: the context that the encoders take.
        losses: the losses of every batch so far.
    """

    model: nn.Module
    modules: list[list[nn.Module]]
    heads: dict[int, nn.Module]
    encoders: dict[int, list[nn.Module]]
    context: Context = NO_CONTEXT
    losses: list[dict[int, Tensor]] = field(default_factory=list)

    @classmethod
    def of(
        cls, learner: lp.Learner, to_layers: ToLayers, context: Context = NO_CONTEXT
    ) -> ReferenceModel:
        model = copy.deepcopy(learner.model)
        layers = to_layers(model)
        assert len(layers) == len(learner.partition.layers)
        modules = [[layers[i] for i in module] for module in learner.partition.modules]
        heads = {int(k): copy.deepcopy(aux_of(learner, int(k))) for k in learner.heads}
        encoders = {
            int(m): [copy.deepcopy(encoder) for encoder in children_of(learner.encoders, m)]
            for m in learner.encoders
        }
        return cls(model, modules, heads, encoders, context)

    def outputs(self, image: Tensor) -> list[Tensor]:
        """h_k of every module, in one graph.

        Context as in ContSup's official code: a queue of module inputs, newest first.
        """
        queue: list[Tensor | None] = [None if self.context.image else image]
        h, outputs = image, []
        for k, layers in enumerate(self.modules):
            if k and self.encoders:
                contexts = [image] if self.context.image else []
                recent = queue[: self.context.previous]
                contexts += [entry for entry in recent if entry is not None]
                for encoder, context in zip(self.encoders[k], contexts, strict=True):
                    h = h + encoder(context.detach())
                queue.insert(0, h)
            for layer in layers:
                h = layer(h)
            outputs.append(h)
        return outputs

    def layer(self, k: int, i: int) -> list[nn.Parameter]:
        """Parameters of layer i of module k; its first layer includes the module's encoders."""
        found = list(self.modules[k][i].parameters())
        if i == 0:
            for encoder in self.encoders.get(k, ()):
                found += encoder.parameters()
        return [parameter for parameter in found if parameter.requires_grad]

    def module(self, k: int) -> list[nn.Parameter]:
        """Parameters of all layers of module k."""
        return self.tail(k, len(self.modules[k]))

    def tail(self, k: int, layers: int) -> list[nn.Parameter]:
        """Parameters of the last layers of module k."""
        count = len(self.modules[k])
        return [p for i in range(max(count - layers, 0), count) for p in self.layer(k, i)]


# --- the methods ------------------------------------------------------------------------------

Losses = Mapping[int, Tensor]


class Term(NamedTuple):
    """A loss, the parameters that it trains, and its weight."""

    loss: Tensor
    parameters: list[nn.Parameter]
    weight: float = 1.0


Method = Callable[[ReferenceModel, Losses], list[Term]]


def greedy(reference: ReferenceModel, loss: Losses) -> list[Term]:
    """f_k by L_k."""
    return [Term(loss[k], reference.module(k)) for k in range(len(reference.modules))]


def end_to_end(reference: ReferenceModel, loss: Losses) -> list[Term]:
    """Everything by L_K."""
    last = len(reference.modules) - 1
    return [Term(loss[last], reference.module(k)) for k in range(last + 1)]


def backlink(layers: int, weight: float = 1.0) -> Method:
    """f_k by L_k; its last layers also by weight * L_{k+1}."""

    def terms(reference: ReferenceModel, loss: Losses) -> list[Term]:
        links = [
            Term(loss[k + 1], reference.tail(k, layers), weight)
            for k in range(len(reference.modules) - 1)
        ]
        return greedy(reference, loss) + links

    return terms


def interlocking(wise: int) -> Method:
    """f_k by L_{min(k + wise - 1, K)} alone."""

    def terms(reference: ReferenceModel, loss: Losses) -> list[Term]:
        last = len(reference.modules) - 1
        return [Term(loss[min(k + wise - 1, last)], reference.module(k)) for k in range(last + 1)]

    return terms


def auglocal(joined: int) -> Method:
    """f_k by L_k, but the last joined + 1 modules by L_K."""

    def terms(reference: ReferenceModel, loss: Losses) -> list[Term]:
        last = len(reference.modules) - 1
        return [
            Term(loss[k if k < last - joined else last], reference.module(k))
            for k in range(last + 1)
        ]

    return terms


# --- training ---------------------------------------------------------------------------------


def gradients(
    reference: ReferenceModel, method: Method, images: Tensor, targets: Tensor, microbatches: int
) -> dict[nn.Parameter, Tensor]:
    """The sum of all terms, each micro-batch with the weight of its size; A_k by L_k alone."""
    total: dict[nn.Parameter, Tensor] = {}
    reference.losses.append({})
    split = zip(images.tensor_split(microbatches), targets.tensor_split(microbatches), strict=True)
    for x, y in split:
        share, outputs = len(x) / len(images), reference.outputs(x)
        loss = {
            k: functional.cross_entropy(head(outputs[k]), y) for k, head in reference.heads.items()
        }
        heads = [Term(loss[k], list(head.parameters())) for k, head in reference.heads.items()]
        for term in (*method(reference, loss), *heads):
            add_gradients(total, term._replace(weight=share * term.weight))
        for k, value in loss.items():
            reference.losses[-1][k] = reference.losses[-1].get(k, 0) + share * value.detach()
    return total


def add_gradients(total: dict[nn.Parameter, Tensor], term: Term) -> None:
    """Add weight times the derivative of a loss to the gradients of the parameters it trains."""
    if not term.parameters:
        return
    found = torch.autograd.grad(term.loss, term.parameters, retain_graph=True)
    for parameter, gradient in zip(term.parameters, found, strict=True):
        total[parameter] = total.get(parameter, 0) + term.weight * gradient


def train(
    reference: ReferenceModel,
    method: Method,
    batches: Batches,
    *,
    microbatches: int = 1,
    lr: float = 0.05,
    momentum: float = 0.9,
) -> None:
    """SGD with momentum, every parameter moved once per batch."""
    velocity: dict[nn.Parameter, Tensor] = {}
    for images, targets in batches:
        found = gradients(reference, method, images, targets, microbatches)
        with torch.no_grad():
            for parameter, gradient in found.items():
                velocity[parameter] = momentum * velocity.get(parameter, 0) + gradient
                parameter.sub_(lr * velocity[parameter])


# --- comparing --------------------------------------------------------------------------------


def aux_of(learner: lp.Learner, k: int) -> nn.Module:
    """The auxiliary network of loss k."""
    return learner.heads.get_submodule(f"{k}.aux")


def prefixed(name: str) -> Callable[[str], str]:
    """A message for `torch.testing.assert_close` that begins with a name."""
    return lambda message: f"{name}: {message}"


def assert_same_state(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    """Parameters and buffers are equal, by name."""
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=prefixed(name))


def assert_moved(before: nn.Module, after: nn.Module) -> None:
    """Every parameter differs, so that equality elsewhere means something."""
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    assert [name for (name, a), b in pairs if torch.equal(a, b)] == []


class Case(NamedTuple):
    """A rule, its reference, and the context that the reference needs."""

    rule: lp.Rule
    method: Method
    context: Context = NO_CONTEXT


ANY_NETWORK: dict[str, Case] = {
    "greedy": Case(lp.greedy(), greedy),
    "greedy 0c1f": Case(lp.greedy(lp.Head(convs=0, linears=1)), greedy),
    "backlink(1)": Case(lp.backlink(), backlink(1)),
    "backlink(2, 0.5)": Case(lp.backlink(2, 0.5), backlink(2, 0.5)),
    "backlink(99)": Case(lp.backlink(99), backlink(99)),
    "interlocking(1)": Case(lp.interlocking(1), interlocking(1)),
    "interlocking(2)": Case(lp.interlocking(2), interlocking(2)),
    "interlocking(3)": Case(lp.interlocking(3), interlocking(3)),
    "interlocking(4)": Case(lp.interlocking(4), interlocking(4)),
    "end_to_end": Case(lp.end_to_end(), end_to_end),
}
