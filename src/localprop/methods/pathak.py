"""Local learning by feature reconstruction (Pathak, Zhang, Samaras, 2022, arXiv 2212.14215)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.models.resnet import init_convs
from localprop.rule.attach import AttachPoint, channel_dimension
from localprop.rule.auxiliary import AuxBuilder, Head
from localprop.rule.local_loss import LocalLoss, LossInputs
from localprop.rule.losses import TaskLoss
from localprop.rule.rule import Rule
from localprop.rule.terms import Term, Terms

__all__ = ["FeatureReconstruction", "pathak"]


class _MapDecoder(nn.Module):
    """Maps to maps of another size and width; either may have its channels last."""

    def __init__(self, point: AttachPoint, target: torch.Size, hidden: int) -> None:
        super().__init__()
        self.from_dim = point.dimension()
        self.to_dim = channel_dimension(target, point.layers.input_shape)
        self.size = target[2:] if self.to_dim == 1 else target[1:3]
        self.body = nn.Sequential(
            nn.Conv2d(point.width(), hidden, 3, padding=1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, target[self.to_dim], 3, padding=1),
        )
        init_convs(self)

    def forward(self, features: Tensor) -> Tensor:
        maps = features.movedim(self.from_dim, 1)
        resized = functional.interpolate(maps, self.size, mode="bilinear", align_corners=True)
        decoded: Tensor = self.body(resized)
        return decoded.movedim(1, self.to_dim)


def _build_bottleneck(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """LoPT's decoder of each token or vector, whose weights start small."""
    narrow, wide = nn.Linear(width, hidden), nn.Linear(hidden, outputs)
    for linear in (narrow, wide):
        nn.init.xavier_uniform_(linear.weight, gain=0.1)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(width), narrow, nn.GELU(), wide)


class _ReconstructionLoss(LocalLoss):
    """The error of a decoded target: the output of the module `tap`, or the module's own input."""

    uses_aux = False

    def __init__(self, decoder: nn.Module, tap: str, weight: float) -> None:
        super().__init__()
        self.decoder, self.weight = decoder, weight
        self.module_input, self.taps = not tap, (tap,) if tap else ()

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        target = inputs.taps[self.taps[0]].detach() if self.taps else inputs.module_input
        assert target is not None
        decoded: Tensor = self.decoder(features)
        if decoded.ndim == 3:  # leave out tokens that the module puts before those of its input
            decoded = decoded[:, -target.shape[1] :]
        dtype = torch.promote_types(decoded.dtype, torch.float32)
        error = functional.mse_loss(decoded.to(dtype), target.reshape(decoded.shape).to(dtype))
        return self.weight * error


@check_arguments
@dataclass(frozen=True)
class FeatureReconstruction:
    """The mean squared error of a module's input, decoded from the module's output.

    The input is a constant. The error is computed in at least 32 bits.

    =============================  ================================================================
    features                       decoder
    =============================  ================================================================
    maps (N, C, H, W)              bilinear to the input's size, conv3x3 C->hidden, BatchNorm, ReLU,
                                   conv3x3 hidden->C'
    tokens (N, T, C), or (N, C)    LayerNorm, Linear C->hidden, GELU, Linear hidden->C'; weights
                                   start small, biases at 0
    =============================  ================================================================

    The second decoder is LoPT's. Layers and weights of Pathak et al. are not known: the first is
    our reading. Maps may have their channels last. Tokens that stand before those of the input (a
    class token) are left out. The first module reconstructs the network's own input. In token
    networks it reconstructs the output of their first layer, the embedding. There the first module
    must be more than that layer, which would be compared with itself.

    Attributes:
        weight: of the error.
        hidden: the decoder's inner width; 0 for a quarter of the features' channels.
        shared: whether to divide the weight by the number of local losses, so that they add up to
            their mean.

    Raises:
        BadInput: a weight that is not positive, a negative width, or a module that turns features
            of one type into another, such as maps into tokens.

    Example:
        >>> FeatureReconstruction(weight=10.0, shared=True)
        FeatureReconstruction(weight=10.0, hidden=0, shared=True)

    Source: Pathak, Zhang, Samaras, Local Learning on Transformers via Feature Reconstruction, 2022,
    arXiv 2212.14215; Shi, Han, Wang, Wang, Yang, Su, Rethinking Local Learning: A Cheaper and
    Faster Recipe for LLM Post-Training (LoPT), 2026, arXiv 2605.04913, and its code.
    """

    weight: float = 1.0
    hidden: int = 0
    shared: bool = False

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.weight < math.inf:
            problems.append(f"weight={self.weight} must be positive and finite.")
        if self.hidden < 0:
            problems.append(f"hidden={self.hidden} must be 0 (a quarter) or more.")
        check(problems)

    def __call__(self, point: AttachPoint) -> LocalLoss:
        tap, target = _find_target(point)
        width = point.width()
        hidden = self.hidden or max(width // 4, 1)
        decoder: nn.Module
        if len(point.features) == 4:
            decoder = _MapDecoder(point, target, hidden)
        else:
            outputs = target[-1] if len(point.features) == 3 else math.prod(target[1:])
            decoder = _build_bottleneck(width, hidden, outputs)
        local_losses = max(point.modules - 1, 1)
        weight = self.weight / local_losses if self.shared else self.weight
        return _ReconstructionLoss(decoder, tap, weight)


def _find_target(point: AttachPoint) -> tuple[str, torch.Size]:
    """The module whose output is the target, "" for the module's own input; and its shape."""
    _check_features(point)
    layers = point.layers
    first = point.start == 0
    module_input = layers.input_shape if first else layers.shapes[point.start - 1]
    # Token ids are integers, which no decoder makes: the embedding stands for them.
    numeric = not first or layers.input_dtype.is_floating_point
    if numeric and _is_decodable(point.features, module_input):
        return "", module_input
    if first and point.layer > 0 and _is_decodable(point.features, layers.shapes[0]):
        return layers.names[0], layers.shapes[0]
    if first and point.layer == 0:
        reason = (
            f"is {layers.names[0]!r} alone, whose output would be compared with itself: "
            "end the first module later"
        )
    else:
        reason = (
            f"turns {tuple(module_input)} into {tuple(point.features)}, features of another type: "
            "cut elsewhere, or use another loss"
        )
    raise BadInput(
        "FeatureReconstruction decodes a module's input from its output, but module "
        f"{point.module} {reason}."
    )


def _check_features(point: AttachPoint) -> None:
    features = point.features
    if len(features) in (2, 4) or point.dimension() != 1:
        return
    raise BadInput(
        "FeatureReconstruction decodes maps (N, C, H, W), tokens (N, T, C) and vectors, but module "
        f"{point.module} ends with {tuple(features)}, whose channels come first: use another loss, "
        "such as loss=TaskLoss()."
    )


def _is_decodable(features: torch.Size, target: torch.Size) -> bool:
    """Maps decode to maps, tokens to no more tokens than they are, vectors to anything."""
    if len(features) == 3:
        return len(target) == 3 and target[1] <= features[1]
    return len(features) == 2 or len(features) == len(target)


@check_arguments
def pathak(
    reconstruction: float = 1.0,
    task: float = 1.0,
    hidden: int = 0,
    aux: AuxBuilder = Head(),  # noqa: B008 - parts are frozen
) -> Rule:
    """Local learning by feature reconstruction: InfoPro with a module's input instead of the image.

    Each module reconstructs its own input.

    Equations, with d_k a decoder::

        L_k = reconstruction * MSE(d_k(h_k), sg(h_{k-1})) + task * CE(a_k(h_k), y)
        gradient of f_k, d_k and a_k = dL_k

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    Our reading: the paper's decoders, weights and error are not known. `FeatureReconstruction` says
    which ones are used here.

    Args:
        reconstruction: the weight of the reconstruction; positive.
        task: the weight of the cross-entropy.
        hidden: the decoder's inner width; 0 for a quarter of the features' channels.
        aux: the auxiliary network, of the cross-entropy alone.

    Example:
        >>> import localprop as lp
        >>> rule = lp.pathak(reconstruction=5.0)

    Reference: Pathak, Zhang, Samaras, Local Learning on Transformers via Feature Reconstruction,
    2022, arXiv 2212.14215.
    """
    decoded = Term(FeatureReconstruction(hidden=hidden), reconstruction)
    loss = Terms((decoded, Term(TaskLoss(), task)))
    return Rule(aux=aux, loss=loss, reference="Pathak et al. 2022, arXiv 2212.14215")
