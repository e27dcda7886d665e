"""Auxiliary networks that hold parameters of the network itself: averages of the next layer's, copies of its read-out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from localprop.errors import BadInput, check
from localprop.rule.auxiliary import AuxBuilder, Head, Pool, Site
from localprop.rule.borrow import Borrow
from localprop.rule.losses import CrossEntropy, LocalLoss, LossBuilder, Seen


class _NextLayer(nn.Module):
    """A layer trained here and one that follows the network's own, added; then a head."""

    def __init__(
        self, own: nn.Module, average: nn.Module, head: nn.Module, borrows: list[Borrow], scaled: bool
    ) -> None:
        super().__init__()
        self.own, self.average, self.head = own, average.requires_grad_(False), head
        self.borrows = tuple(borrows)
        self.scale = nn.Parameter(torch.ones(())) if scaled else None

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(self.ahead(features))
        return logits

    def ahead(self, features: Tensor) -> Tensor:
        """What the head sees."""
        own: Tensor = self.own(features)
        average: Tensor = self.average(features)
        return own + average if self.scale is None else self.scale * own + (2 - self.scale) * average


@dataclass(frozen=True)
class NextLayerHead:
    """MAN's momentum auxiliary network: a head behind two layers like the next module's first one, LB and EMA::

        y = LB(h) + EMA(h)                    MAN
        y = s * LB(h) + (2 - s) * EMA(h)      MAN++; s is learned, 1 at first
        EMA <- decay * EMA + (1 - decay) * (that layer's parameters, as they are before its step), once a step

    LB is trained with the head; EMA passes gradients to h and is not trained. Both begin with weights of their own, and have
    BatchNorm statistics of their own, as in the code; only parameters are averaged.

    Attributes:
        head: builds the head behind them, for features like the next layer's.
        decay: m. (The code's own default, 1, leaves EMA as it began; its README has 0.995.)
        scaled: MAN++ instead of MAN.

    Raises:
        BadInput: a decay outside [0, 1]; a next layer that cannot be copied.

    Example:
        >>> NextLayerHead(head=Head(convs=0, linears=1), scaled=True).decay
        0.995

    Source: Su, Cai, Zhu, He, Xu, Guan, Si, Momentum Auxiliary Network for Supervised Local Learning, ECCV 2024, arXiv
    2407.05623; MAN++, 2025, arXiv 2507.16279; and their code.
    """

    head: AuxBuilder = field(default=Head())
    decay: float = 0.995
    scaled: bool = False

    def __post_init__(self) -> None:
        check([] if 0 <= self.decay <= 1 else [f"decay={self.decay} must lie in [0, 1]."])

    def __call__(self, site: Site) -> nn.Module:
        layer = site.layer + 1
        own, average = site.fresh(layer), site.fresh(layer)
        head = self.head(_ahead(site))
        names = [(name, _in_network(site, layer, name)) for name, _ in average.named_parameters()]
        borrows = [Borrow(source, f"average.{name}", self.decay, lag=1) for name, source in names]
        return _NextLayer(own, average, head, borrows, self.scaled)


def _ahead(site: Site) -> Site:
    """A site for what looks at features like the next layer's."""
    layer = site.layer + 1
    return replace(site, layer=layer, features=site.layers.shapes[layer])


class _LossAhead(LocalLoss):
    def __init__(self, loss: LocalLoss) -> None:
        super().__init__()
        self.loss = loss
        self.inlet, self.taps, self.attached = loss.inlet, loss.taps, loss.attached

    def forward(self, features: Tensor, aux: nn.Module, seen: Seen) -> Tensor:
        if not isinstance(aux, _NextLayer):
            raise BadInput(["ThroughNextLayer(...) looks through aux=NextLayerHead(...): give the rule that one."])
        found: Tensor = self.loss(aux.ahead(features), aux.head, seen)
        return found

    def problems(self, targets: Tensor, outputs: torch.Size) -> Iterable[str]:
        return self.loss.problems(targets, outputs)


@dataclass(frozen=True)
class ThroughNextLayer:
    """A loss of what :class:`NextLayerHead` puts before its head, y: all of its terms see y, also those without the head.

    Equation, with h the module's output and a the head::

        L(h) = loss(y(h), a)          for example 5 * reconstruction(y) + 0.5 * CE(a(y))

    For a loss that looks at nothing but the head's outputs, such as cross-entropy, that is the loss itself.

    Attributes:
        loss: builds the loss, for features like the next layer's.

    Raises:
        BadInput: in a step, an auxiliary network that is no NextLayerHead.

    Example:
        >>> rule = lp.Rule(aux=NextLayerHead(), loss=ThroughNextLayer(lp.Terms()))

    Source: InfoPro with MAN, Su et al., ECCV 2024, arXiv 2407.05623, official code.
    """

    loss: LossBuilder = field(default=CrossEntropy())

    def __call__(self, site: Site) -> LocalLoss:
        return _LossAhead(self.loss(_ahead(site)))


def _in_network(site: Site, layer: int, name: str) -> str:
    """The name in the network of a parameter of a layer's copy, which is one module or a sequence of them."""
    whole = f"{site.layers.names[layer]}.{name}"
    if whole in site.layers.parameters[layer]:
        return whole
    place, _, own = name.partition(".")
    return f"{site.layers.pieces[layer][int(place)].name}.{own}"


# --- the network's own read-out -------------------------------------------------------------------------------------------


class _Readout(nn.Module):
    def __init__(self, body: nn.Module, width: int, readout: Tensor, borrow: Borrow) -> None:
        super().__init__()
        wide = readout.shape[1]
        self.body = body
        self.widened = nn.Identity() if width == wide else nn.Linear(width, wide, bias=False)
        self.norm = nn.RMSNorm(wide)
        self.temperature = nn.Parameter(torch.ones(()))
        self.readout = nn.Parameter(readout.detach().clone(), requires_grad=False)
        self.borrows = (borrow,)

    def forward(self, features: Tensor) -> Tensor:
        wide: Tensor = self.widened(self.body(features))
        normed: Tensor = self.norm(wide.to(self.norm.weight.dtype))  # precise under autocast, which leaves it alone
        return self.temperature * normed @ self.readout.T


@dataclass(frozen=True)
class SharedReadout:
    """SOLO's head: blocks, RMSNorm, a learned temperature, and a copy of the network's own last matrix W, not trained here::

        logits = tau * RMSNorm(blocks(h)) W^T         W <- the network's W after its step, every so many steps

    The blocks are fresh copies of the module's last layer; where that changes the shape of the features, of the layer
    nearest to it that keeps their shape. Where the network has one output per sample (N, classes), features are averaged
    over positions before the norm; where W is of another width, a linear layer without bias stands there: both are our
    reading, since the paper's networks are language models (N, T, classes) of one width. tau is 1 at first, our reading too.

    Attributes:
        blocks: how many.
        every: S, in which steps W is copied: the first, and every so many after it.
        readout: the name of W (outputs, width) in the network; "" for the last such matrix of its last layer.

    Raises:
        BadInput: a negative number of blocks, no layer that blocks could be copied from, no W of that name or shape.

    Example:
        >>> SharedReadout(every=50)
        SharedReadout(blocks=2, every=50, readout='')

    Source: Yin, Wang, Pan, Li, SOLO, 2026, arXiv 2609.35440.
    """

    blocks: int = 2
    every: int = 1
    readout: str = ""

    def __post_init__(self) -> None:
        problems = [] if self.blocks >= 0 else [f"blocks={self.blocks} must be 0 or more."]
        check([*problems, *([] if self.every >= 1 else [f"every={self.every} must be 1 or more steps."])])

    def __call__(self, site: Site) -> nn.Module:
        name = self.readout or _last_matrix(site)
        readout = _matrix(site, name)
        layer = _keeping_shape(site) if self.blocks else site.layer
        body = [site.fresh(layer) for _ in range(self.blocks)]
        if len(site.layers.output_shape) == 2:
            body.append(Pool(site.dimension()))
        return _Readout(nn.Sequential(*body), site.width(), readout, Borrow(name, "readout", every=self.every))


def _keeping_shape(site: Site) -> int:
    """The layer nearest to the module's last one that turns its features into features of the same shape."""
    shapes = (site.layers.input_shape, *site.layers.shapes)
    alike = [i for i in range(len(site.layers)) if shapes[i] == shapes[i + 1] == site.features]
    if not alike:
        raise BadInput(
            [
                f"No layer keeps features of the shape {tuple(site.features)}, which module {site.module} ends with, so that "
                "there is none to copy: use SharedReadout(blocks=0), or cut elsewhere."
            ]
        )
    return min(alike, key=lambda layer: abs(layer - site.layer))


def _last_matrix(site: Site) -> str:
    model, names = site.layers.model, site.layers.parameters[-1]
    fit = [name for name in names if _fits(model.get_parameter(name), site.outputs)]
    if not fit:
        raise BadInput(
            [
                f"The last layer has no matrix with a row for each of the {site.outputs} outputs: name the network's read-out, "
                "SharedReadout(readout=...)."
            ]
        )
    return fit[-1]


def _matrix(site: Site, name: str) -> Tensor:
    matrix = dict(site.layers.model.named_parameters()).get(name)
    if matrix is None:
        raise BadInput([f"The model has no parameter {name!r}, which SharedReadout(readout=...) names."])
    if not _fits(matrix, site.outputs):
        raise BadInput(
            [
                f"SharedReadout(readout={name!r}): it is of shape {tuple(matrix.shape)}, but must have a row for each of the "
                f"{site.outputs} outputs."
            ]
        )
    return matrix


def _fits(parameter: Tensor, outputs: int) -> bool:
    return parameter.ndim == 2 and len(parameter) == outputs
