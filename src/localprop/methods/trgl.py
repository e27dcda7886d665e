"""TRGL: module-wise training with the minimizing movement scheme (Karkar et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from localprop.arguments import check_arguments
from localprop.errors import check
from localprop.models.resnet import init_convs
from localprop.rule.attach import AttachPoint
from localprop.rule.auxiliary import AuxBuilder, Pool, find_width_problems
from localprop.rule.local_loss import LocalLoss, LossInputs
from localprop.rule.losses import CrossEntropy, PenalizedLoss
from localprop.rule.rule import Rule

__all__ = ["KineticPenalty", "OneConvHead", "trgl"]


class _PlainLayer(NamedTuple):
    """A layer without a residual branch: the modules whose outputs are its input and its output.

    `before` is "" where the input is that of the loss's own module.
    """

    before: str
    after: str


class _KineticLoss(PenalizedLoss):
    """A loss plus `factor` times the kinetic energy of the module's layers."""

    def __init__(
        self,
        base: LocalLoss,
        branches: tuple[str, ...],
        plain_layers: tuple[_PlainLayer, ...],
        factor: float,
        norm: str,
    ) -> None:
        super().__init__(base)
        self.branches, self.plain_layers = branches, plain_layers
        self.factor, self.norm = factor, norm
        self.module_input = base.module_input or any(not layer.before for layer in plain_layers)
        inner = (name for layer in plain_layers for name in layer if name)
        self.taps = tuple(dict.fromkeys((*base.taps, *branches, *inner)))

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        loss: Tensor = self.base(features, aux, inputs)
        return loss + self.factor * self._sum_energy(inputs)

    def _sum_energy(self, inputs: LossInputs) -> Tensor:
        residuals = [inputs.taps[name] for name in self.branches]
        for layer in self.plain_layers:
            residuals.append(inputs.taps[layer.after] - self._find_input(layer, inputs))
        return torch.stack([self._square(residual) for residual in residuals]).sum()

    @staticmethod
    def _find_input(layer: _PlainLayer, inputs: LossInputs) -> Tensor:
        if layer.before:
            return inputs.taps[layer.before]
        assert inputs.module_input is not None
        return inputs.module_input

    def _square(self, residual: Tensor) -> Tensor:
        squares = residual.square()
        return squares.mean() if self.norm == "mean" else squares.sum() / len(squares)


class _GrowingLoss(_KineticLoss):
    """A kinetic loss whose energy is divided by a multiplier that grows with the loss.

    The multiplier and the count are tensors, so that a GPU need not wait for their values. As
    buffers they are part of a checkpoint.
    """

    multiplier: Tensor
    calls: Tensor

    def __init__(
        self,
        base: LocalLoss,
        branches: tuple[str, ...],
        plain_layers: tuple[_PlainLayer, ...],
        factor: float,
        norm: str,
        growth: float,
        every: int,
    ) -> None:
        super().__init__(base, branches, plain_layers, factor, norm)
        self.growth, self.every = growth, every
        self.register_buffer("multiplier", torch.ones(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        loss: Tensor = self.base(features, aux, inputs)
        # The loss has no gradient in a phase that freezes the module: such a step does not count.
        if self.training and loss.requires_grad:
            self._grow(loss.detach())
        return loss + self.factor / self.multiplier * self._sum_energy(inputs)

    def _grow(self, loss: Tensor) -> None:
        self.calls += 1
        self.multiplier += torch.where(self.calls % self.every == 0, self.growth * loss, 0.0)


@check_arguments
@dataclass(frozen=True)
class KineticPenalty:
    """TRGL's kinetic energy: penalises how far a module moves its features.

    Each module's loss gains a sum over its residual blocks::

        sum over the blocks m of |r_m|^2 / (2 tau)

    with r_m the output of the residual branch, before the shortcut is added. A block that changes
    the shape counts too. Layers without such a branch, such as the stem, count only if `plain` is
    set. If a module has several losses at its end, the first one gains the penalty. Modules that
    are joined under a later loss have none.

    With `growth` the sum is divided by a multiplier of the module. In training the multiplier grows
    with the module's loss L, taken without the penalty::

        lambda = 1 at first; in every `every`-th step, before it is used:
        lambda <- lambda + growth * L

    Each micro-batch counts as a step. Steps of a phase that leaves the module out do not count.
    Each replica has its own multipliers, from its share of the losses, as it has its own BatchNorm
    statistics. A checkpoint keeps those of replica 0.

    Attributes:
        tau: how far features may move. The published values, 0.5 to 1e6, belong to norm="mean".
        late_factor: tau is multiplied by it in the second half of the modules. The paper's tables
            double tau there.
        norm: |r|^2 is the "mean" of the squares over samples, channels and space, as in the
            official code, or their sum per "sample", averaged over samples, as in the paper.
        branches: sets of modules that end a layer's residual branches, by their names within the
            layer. The first set counts of which the layer has all modules. The first two sets are
            those of ResNets with and without bottlenecks, the third those of timm's transformers,
            which end where paths are dropped, as in the official code for Swin. The others are our
            reading: those of torchvision's Swin, of this package's language model, and of
            torchvision's ViT, whose attention ends in a dropout. Otherwise these branches end
            before they are dropped.
        plain: whether a layer T without branches that keeps its shape counts by what it adds to its
            input, T(x) - x.
        growth: h, how fast the multiplier grows; 0 for no multiplier. CIFAR-100's table has 1, with
            tau 0.5.
        every: s, the steps between two growths; 50 in that table.

    Raises:
        BadInput: a tau or factor that is not positive, an unknown norm, a negative growth, `every`
            below 1, or a network in which no layer counts.

    Example:
        >>> penalty = KineticPenalty(tau=0.5, late_factor=2.0)
        >>> penalty.factor(module=1, modules=4), penalty.factor(module=2, modules=4)
        (1.0, 0.5)

    Source: Karkar, Ayed, de Bézenac, Gallinari, Module-wise Training of Neural Networks via the
    Minimizing Movement Scheme, NeurIPS 2023, and its code.
    """

    tau: float = 1.0
    late_factor: float = 1.0
    norm: str = "mean"
    branches: tuple[tuple[str, ...], ...] = (
        ("bn3",),
        ("bn2",),
        ("drop_path1", "drop_path2"),
        ("attn", "mlp"),
        ("attention", "mlp"),
        ("dropout", "mlp"),
    )
    plain: bool = False
    growth: float = 0.0
    every: int = 50

    def __post_init__(self) -> None:
        check(self._find_problems())

    def _find_problems(self) -> Iterator[str]:
        for name, value in (("tau", self.tau), ("late_factor", self.late_factor)):
            if not 0 < value < float("inf"):
                yield f"{name}={value} must be positive and finite."
        if self.norm not in ("mean", "sample"):
            yield f"norm={self.norm!r} must be mean or sample."
        if not 0 <= self.growth < float("inf"):
            yield f"growth={self.growth} must be 0 or more, and finite."
        if self.every < 1:
            yield f"every={self.every} must be 1 or more steps."

    def __call__(self, point: AttachPoint, loss: LocalLoss) -> LocalLoss:
        check(self._find_network_problems(point))
        layers = range(point.start, point.layer + 1)
        branches = tuple(name for layer in layers for name in self._branches_of(point, layer))
        plain_layers = tuple(self._find_plain_layers(point)) if self.plain else ()
        if point.objective or not (branches or plain_layers):
            return loss
        factor = self.factor(point.module, point.modules)
        if self.growth:
            return _GrowingLoss(
                loss, branches, plain_layers, factor, self.norm, self.growth, self.every
            )
        return _KineticLoss(loss, branches, plain_layers, factor, self.norm)

    def factor(self, module: int, modules: int) -> float:
        """1 / (2 tau) of module number `module` of `modules`."""
        return 1 / (2 * self.tau * (self.late_factor if module >= modules / 2 else 1))

    def _find_network_problems(self, point: AttachPoint) -> Iterator[str]:
        """Report a network in which no layer counts: the penalty would silently do nothing."""
        network = replace(point, start=0, layer=len(point.layers) - 1)
        if any(self._branches_of(network, layer) for layer in range(len(network.layers))):
            return
        if not self.plain:
            yield (
                "KineticPenalty finds no residual branch in this network, so training would be "
                "plain local learning: name the branches, KineticPenalty(branches=...), or use "
                "plain=True."
            )
        elif not any(self._find_plain_layers(network)):
            yield (
                "KineticPenalty finds neither a residual branch nor a layer that keeps its shape "
                "in this network, so training would be plain local learning: name the branches, "
                "KineticPenalty(branches=...), or use greedy()."
            )

    def _branches_of(self, point: AttachPoint, layer: int) -> tuple[str, ...]:
        """The names of the modules that end the residual branches of a layer."""
        name = point.layers.names[layer]
        known = {child for child, _ in point.layers.model.get_submodule(name).named_modules()}
        found = next((ends for ends in self.branches if known.issuperset(ends)), ())
        return tuple(f"{name}.{end}" for end in found)

    def _find_plain_layers(self, point: AttachPoint) -> Iterator[_PlainLayer]:
        shapes = (point.layers.input_shape, *point.layers.shapes)
        names = ("", *point.layers.names)
        for layer in range(point.start, point.layer + 1):
            if shapes[layer] == shapes[layer + 1] and not self._branches_of(point, layer):
                # The first layer's input comes from another module: a tap would send it gradients.
                before = names[layer] if layer > point.start else ""
                yield _PlainLayer(before, names[layer + 1])


@check_arguments
@dataclass(frozen=True)
class OneConvHead:
    """TRGL's auxiliary network "1CNN".

    It has a 3x3 convolution, ReLU, an average pool, BatchNorm, and a linear layer, in that order.
    The convolution keeps width and size and has no bias. Features that are not maps are averaged
    after LayerNorm, as in the official code for Swin.

    Attributes:
        pools: the side of the pool's windows at the network's first size of maps, at its second,
            and so on; the last one serves all sizes after it. A window larger than the map becomes
            the whole map.

    Raises:
        BadInput: windows below 1.

    Example (ResNet-110 on STL-10, the last size)::

        (N, 64, 24, 24) -> conv 64->64 -> 8x8 averages -> (N, 64 * 3 * 3) -> (N, classes)

    The default is that of ResNet-110 on STL-10. ResNet-101 and ResNet-152 take (8, 8, 8, 4) on
    CIFAR-100 and TinyImageNet.

    Source: Karkar, Ayed, de Bézenac, Gallinari, Module-wise Training of Neural Networks via the
    Minimizing Movement Scheme (TRGL), NeurIPS 2023, official code.
    """

    pools: tuple[int, ...] = (16, 16, 8)

    def __post_init__(self) -> None:
        check(find_width_problems("OneConvHead", "pools", self.pools, least=1))

    def __call__(self, point: AttachPoint) -> nn.Module:
        width = point.width()
        if not point.is_map():
            return nn.Sequential(*_build_token_average(point), nn.Linear(width, point.outputs))
        pool = self.pools[min(_count_size_changes(point), len(self.pools) - 1)]
        sides = point.features[2:]
        kernel = tuple(min(pool, side) for side in sides)
        pooled = (sides[0] // kernel[0]) * (sides[1] // kernel[1])
        head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.AvgPool2d((kernel[0], kernel[1])),
            nn.BatchNorm2d(width),
            nn.Flatten(),
            nn.Linear(width * pooled, point.outputs),
        )
        init_convs(head)
        return head


def _build_token_average(point: AttachPoint) -> list[nn.Module]:
    """LayerNorm and an average over positions, unless the network has an output per position."""
    norm, dimension = nn.LayerNorm(point.width()), point.dimension()
    average = nn.Identity() if len(point.layers.output_shape) > 2 else Pool(dimension)
    # LayerNorm normalises the last dimension. Channels stand there only after the average if the
    # features have them first.
    return [norm, average] if dimension == len(point.features) - 1 else [average, norm]


def _count_size_changes(point: AttachPoint) -> int:
    """How often the size of the maps changes up to the features."""
    layers = range(point.layer + 1)
    sizes = [point.layers.shapes[layer][2:] for layer in layers if point.is_map(layer)]
    return sum(before != after for before, after in pairwise(sizes))


@check_arguments
def trgl(
    tau: float = 0.5,
    late_factor: float = 2.0,
    label_smoothing: float = 0.1,
    norm: str = "mean",
    plain: bool = False,
    growth: float = 0.0,
    every: int = 50,
    aux: AuxBuilder = OneConvHead(),
) -> Rule:
    """TRGL: greedy local learning whose modules move their features no further than they need.

    Equations, with r_m the output of the residual branch of block m, and t_k = tau in the first
    half of the modules, late_factor * tau in the second::

        L_k = CE(a_k(h_k), y) + sum over the blocks m of module k of mean(r_m^2) / (2 t_k lambda_k)
        gradient of f_k and a_k = dL_k
        lambda_k = 1 at first; in every `every`-th step, before it is used:
        lambda_k <- lambda_k + growth * CE(a_k(h_k), y)

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    The last module has the term too. Its classifier is the network's own, while the paper's is a
    head like the others. Its label smoothing is the learner's:
    `Learner(task=CrossEntropy(label_smoothing=0.1))`. The defaults are those of ResNet-110 on
    STL-10 with 4 or more modules; 2 modules take tau=50, TinyImageNet takes 500000, and the
    CIFAR-100 table takes tau=0.5, late_factor=1, growth=1, every=50. To train modules in turn, once
    or in several cycles, use the phases of a run: see the recipes
    resnet101_cifar100_trgl_sequential_k2 and resnet101_cifar100_trgl_multilap_k2. `KineticPenalty`
    says how lambda grows with micro-batches and replicas.

    Args:
        tau: of the first half of the modules.
        late_factor: what tau is multiplied by in the second half.
        label_smoothing: of the local losses.
        norm: "mean" of the squares as in the official code, or their sum per "sample" as in the
            paper.
        plain: whether layers without a residual branch count by what they add to their input (VGG).
        growth: h, how fast the multiplier lambda grows; 0 leaves it at 1.
        every: s, the steps between two growths.
        aux: the auxiliary network; the default is the paper's "1CNN".

    Example:
        >>> import localprop as lp
        >>> head = lp.OneConvHead(pools=(8, 8, 8, 4))
        >>> rule = lp.trgl(tau=500000.0, aux=head)                 # TinyImageNet, 4 modules

    Reference: Karkar, Ayed, de Bézenac, Gallinari, Module-wise Training of Neural Networks via the
    Minimizing Movement Scheme, NeurIPS 2023.
    """
    penalty = KineticPenalty(
        tau=tau, late_factor=late_factor, norm=norm, plain=plain, growth=growth, every=every
    )
    return Rule(
        aux=aux, loss=CrossEntropy(label_smoothing), penalty=penalty, reference="Karkar et al. 2023"
    )
