"""MAN and MAN++: momentum auxiliary networks (Su et al., ECCV 2024, arXiv 2407.05623).

MAN++ is Su et al., 2025, arXiv 2507.16279.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.methods.dgl import MlpSrHead
from localprop.rule.attach import AttachPoint
from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.local_loss import LocalLoss, LossInputs
from localprop.rule.losses import LossBuilder, TaskLoss
from localprop.rule.parameter_copy import ParameterCopy
from localprop.rule.rule import Rule

__all__ = ["NextLayerHead", "NextLayerLoss", "man", "man_plus"]


class _MomentumAuxNetwork(nn.Module):
    """The sum of a trained layer and of one that averages the network's own, and then a head.

    Args:
        own: the layer that is trained here (LB).
        average: the layer that follows the network's own (EMA).
        head: the network that classifies their sum.
        parameter_copies: how the parameters of `average` follow the network's.
        scaled: whether the two layers have a learned share of the sum (MAN++).
    """

    def __init__(
        self,
        own: nn.Module,
        average: nn.Module,
        head: nn.Module,
        parameter_copies: tuple[ParameterCopy, ...],
        scaled: bool,
    ) -> None:
        super().__init__()
        self.own, self.average, self.head = own, average.requires_grad_(False), head
        self.parameter_copies = parameter_copies
        self.scale = nn.Parameter(torch.ones(())) if scaled else None

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(self.add_layers(features))
        return logits

    def add_layers(self, features: Tensor) -> Tensor:
        """The input of the head: y in the equations of `NextLayerHead`."""
        trained: Tensor = self.own(features)
        averaged: Tensor = self.average(features)
        if self.scale is None:
            return trained + averaged
        return self.scale * trained + (2 - self.scale) * averaged


@check_arguments
@dataclass(frozen=True)
class NextLayerHead:
    """MAN's momentum auxiliary network: a head behind two layers like the next module's first one.

    The two layers are LB and EMA::

        y = LB(h) + EMA(h)                    MAN
        y = s * LB(h) + (2 - s) * EMA(h)      MAN++; s is learned, 1 at first
        EMA <- decay * EMA + (1 - decay) * (that layer's parameters before its step), once a step

    LB is trained with the head. EMA passes gradients to h and is not trained. Both start with
    weights of their own and have BatchNorm statistics of their own, as in the official code: only
    parameters are averaged.

    Attributes:
        head: builds the head behind them, for features like the next layer's.
        decay: m. The official code's default, 1, leaves EMA as it started; its README has 0.995.
        scaled: MAN++ instead of MAN.

    Raises:
        BadInput: a decay outside [0, 1], or a next layer that cannot be copied.

    Example:
        >>> NextLayerHead(head=Head(convs=0, linears=1), scaled=True).decay
        0.995

    Source: Su, Cai, Zhu, He, Xu, Guan, Si, Momentum Auxiliary Network for Supervised Local
    Learning, ECCV 2024, arXiv 2407.05623; MAN++, 2025, arXiv 2507.16279; and their code.
    """

    head: AuxBuilder = field(default=Head())
    decay: float = 0.995
    scaled: bool = False

    def __post_init__(self) -> None:
        check([] if 0 <= self.decay <= 1 else [f"decay={self.decay} must lie in [0, 1]."])

    def __call__(self, point: AttachPoint) -> nn.Module:
        layer = point.layer + 1
        trained, average = point.make_fresh_copy(layer), point.make_fresh_copy(layer)
        head = self.head(_move_behind_next_layer(point))
        # lag=1: the copy reads the next layer's parameters before their step, as the code does.
        parameter_copies = tuple(
            ParameterCopy(
                _find_source(point, layer, name), f"average.{name}", decay=self.decay, lag=1
            )
            for name, _ in average.named_parameters()
        )
        return _MomentumAuxNetwork(trained, average, head, parameter_copies, self.scaled)


def _move_behind_next_layer(point: AttachPoint) -> AttachPoint:
    """The attach point of what reads features like the next layer's."""
    layer = point.layer + 1
    return replace(point, layer=layer, features=point.layers.shapes[layer])


def _find_source(point: AttachPoint, layer: int, name: str) -> str:
    """The name in the network of a parameter that a copy of the layer calls `name`."""
    layers, model = point.layers, point.layers.model
    # A tied parameter has several names, and the network goes by the first of them.
    first_names = {id(parameter): each for each, parameter in model.named_parameters()}
    named = dict(model.named_parameters(remove_duplicate=False))
    source = named.get(f"{layers.names[layer]}.{name}")
    if source is None or first_names[id(source)] not in layers.parameters[layer]:
        # The copy is a sequence of the layer's modules: its names begin with their index.
        index, _, name_in_submodule = name.partition(".")
        source = named[f"{layers.submodules[layer][int(index)].name}.{name_in_submodule}"]
    return first_names[id(source)]


class _LossBehindNextLayer(LocalLoss):
    def __init__(self, loss: LocalLoss) -> None:
        super().__init__()
        self.loss = loss
        self.module_input, self.taps = loss.module_input, loss.taps
        self.second_order = loss.second_order

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        if not isinstance(aux, _MomentumAuxNetwork):
            raise BadInput(
                "NextLayerLoss(...) reads features behind the layers of NextLayerHead: give the "
                "rule aux=NextLayerHead(...)."
            )
        value: Tensor = self.loss(aux.add_layers(features), aux.head, inputs)
        return value

    def find_problems(self, inputs: LossInputs, outputs: torch.Size) -> Iterable[str]:
        return self.loss.find_problems(inputs, outputs)


@check_arguments
@dataclass(frozen=True)
class NextLayerLoss:
    """A loss of y, the sum of layers that `NextLayerHead` puts before its head.

    All terms of the loss see y, also those that do not use the head.

    Equation, with h the module's output and a the head::

        L(h) = loss(y(h), a)          for example 5 * reconstruction(y) + 0.5 * CE(a(y))

    A loss that reads only the head's outputs, such as cross-entropy, does not change by this.

    Attributes:
        loss: builds the loss, for features like the next layer's.

    Raises:
        BadInput: in a step, if the auxiliary network is not a NextLayerHead.

    Example:
        >>> rule = lp.Rule(aux=NextLayerHead(), loss=NextLayerLoss(lp.Terms()))

    Source: InfoPro with MAN, Su et al., ECCV 2024, arXiv 2407.05623, official code.
    """

    loss: LossBuilder = field(default=TaskLoss())

    def __call__(self, point: AttachPoint) -> LocalLoss:
        return _LossBehindNextLayer(self.loss(_move_behind_next_layer(point)))


@check_arguments
def man(
    decay: float = 0.995,
    aux: AuxBuilder = Head(),  # noqa: B008 - parts are frozen
    loss: LossBuilder = TaskLoss(),  # noqa: B008
) -> Rule:
    """MAN: each head looks through a moving average of the next module's first layer.

    Equations, with g the next module's first layer, LB and EMA copies of it with weights of their
    own, and a_k a head::

        z_k = LB_k(h_k) + EMA_k(h_k)
        L_k = CE(a_k(z_k), y)             or another loss of z_k: reconstruction(z_k) + CE(...)
        gradient of f_k, a_k and LB_k = dL_k
        EMA_k <- decay * EMA_k + (1 - decay) * g      once a step, with g as it is before its step

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    As in the official code, LB and EMA start apart from g, and EMA has BatchNorm statistics of its
    own. The tables' "16" modules of ResNet-32 are 15, and "55" of ResNet-110 are 54: the stem
    belongs to the first module. The official code holds only InfoPro with MAN, whose decoder sees
    z_k too, and whose head is 2c2f. The tables quote DGL with MAN, but its head is not known: 1c2f
    is our reading.

    Args:
        decay: m.
        aux: the head behind LB and EMA, built for features like the next layer's.
        loss: of z_k. If it has a decoder, tell the learner how its inputs were made from pixels
            (`normalization=`).

    Example:
        >>> import localprop as lp
        >>> pixels = lp.Term(lp.PixelReconstruction(), 5.0)
        >>> terms = lp.Terms((pixels, lp.Term(lp.TaskLoss(), 0.5)))
        >>> rule = lp.man(aux=lp.Head(convs=2), loss=terms)          # InfoPro with MAN

    Reference: Su, Cai, Zhu, He, Xu, Guan, Si, Momentum Auxiliary Network for Supervised Local
    Learning, ECCV 2024, arXiv 2407.05623.
    """
    head = NextLayerHead(aux, decay)
    return Rule(aux=head, loss=NextLayerLoss(loss), reference="Su et al. 2024, arXiv 2407.05623")


@check_arguments
def man_plus(
    decay: float = 0.995,
    aux: AuxBuilder = MlpSrHead(size=8, width=128, pooled=1, hidden=512),  # noqa: B008
    loss: LossBuilder = TaskLoss(),  # noqa: B008
) -> Rule:
    """MAN++: `man` with a learned share of the trained and the averaged layer.

    Equations, with s_k one number, 1 at first::

        z_k = s_k * LB_k(h_k) + (2 - s_k) * EMA_k(h_k)
        L_k = CE(a_k(z_k), y)                         or another loss of z_k
        gradient of f_k, a_k, LB_k and s_k = dL_k
        EMA_k <- decay * EMA_k + (1 - decay) * g      once a step, with g as it is before its step

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    Here the stem is a module of its own: the 16 modules of ResNet-32 and the 55 of ResNet-110 are
    all of their layers. Left out: the head for ViT, which has one more trained block behind LB and
    EMA.

    Args:
        decay: m.
        aux: the head behind LB and EMA; the default is that of the official code for DGL with
            MAN++ on CIFAR.
        loss: of z_k. InfoPro with MAN++, as on ImageNet, has a decoder: see `man`.

    Example:
        >>> import localprop as lp
        >>> rule = lp.man_plus(decay=0.99)

    Reference: Su et al., MAN++: Scaling Momentum Auxiliary Network for Supervised Local Learning in
    Vision Tasks, 2025, arXiv 2507.16279.
    """
    head = NextLayerHead(aux, decay, scaled=True)
    return Rule(aux=head, loss=NextLayerLoss(loss), reference="Su et al. 2025, arXiv 2507.16279")
