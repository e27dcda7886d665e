"""SOLO: local losses that share the network's own read-out (Yin et al., 2026, arXiv 2609.35440)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localprop.arguments import check_arguments
from localprop.errors import BadInput, check
from localprop.rule.attach import AttachPoint
from localprop.rule.auxiliary import Pool
from localprop.rule.parameter_copy import ParameterCopy
from localprop.rule.rule import Rule

__all__ = ["SharedReadout", "solo"]


class _Readout(nn.Module):
    """tau * RMSNorm(body(h)) W^T, with W a copy of the network's read-out that is not trained."""

    def __init__(
        self, body: nn.Module, width: int, readout: Tensor, parameter_copy: ParameterCopy
    ) -> None:
        super().__init__()
        readout_width = readout.shape[1]
        self.body = body
        self.widened = (
            nn.Identity() if width == readout_width else nn.Linear(width, readout_width, bias=False)
        )
        self.norm = nn.RMSNorm(readout_width)
        self.temperature = nn.Parameter(torch.ones(()))
        self.readout = nn.Parameter(readout.detach().clone(), requires_grad=False)
        self.parameter_copies = (parameter_copy,)

    def forward(self, features: Tensor) -> Tensor:
        features = self.widened(self.body(features))
        # Autocast does not convert the input of RMSNorm, so do it here: the norm stays precise.
        normed: Tensor = self.norm(features.to(self.norm.weight.dtype))
        return self.temperature * normed @ self.readout.T


@check_arguments
@dataclass(frozen=True)
class SharedReadout:
    """SOLO's head: blocks, RMSNorm, a learned temperature, and a copy of the network's last matrix.

    This head does not train the matrix W::

        logits = tau * RMSNorm(blocks(h)) W^T
        W <- the network's W after its step, in every `every`-th step

    The blocks are new copies of the module's last layer. Where that layer changes the shape of the
    features, they are copies of the nearest layer that keeps their shape.

    The paper's networks are language models (N, T, classes) of one width, so three things are our
    reading. Where the network has one output per sample (N, classes), features are averaged over
    positions before the norm. Where W has another width, a linear layer without bias precedes the
    norm. tau is 1 at first.

    Attributes:
        blocks: the number of blocks.
        every: S; W is copied in the first step and in every S-th step after it.
        readout: the name of W (outputs, width) in the network; "" for the last matrix of that shape
            in its last layer.

    Raises:
        BadInput: a negative number of blocks, no layer to copy blocks from, or no W of that name or
            shape.

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
        if self.every < 1:
            problems.append(f"every={self.every} must be 1 or more steps.")
        check(problems)

    def __call__(self, point: AttachPoint) -> nn.Module:
        name = self.readout or _find_last_matrix(point)
        readout = _find_matrix(point, name)
        layer = _find_layer_that_keeps_shape(point) if self.blocks else point.layer
        body = [point.make_fresh_copy(layer) for _ in range(self.blocks)]
        if len(point.layers.output_shape) == 2:
            body.append(Pool(point.dimension()))
        parameter_copy = ParameterCopy(name, "readout", every=self.every)
        return _Readout(nn.Sequential(*body), point.width(), readout, parameter_copy)


def _find_layer_that_keeps_shape(point: AttachPoint) -> int:
    """The layer nearest to the module's last one whose input and output look like its features."""
    shapes = (point.layers.input_shape, *point.layers.shapes)
    candidates = [
        layer
        for layer in range(len(point.layers))
        if shapes[layer] == shapes[layer + 1] == point.features
    ]
    if not candidates:
        raise BadInput(
            f"Module {point.module} ends with features of the shape {tuple(point.features)}, but "
            "no layer keeps features of this shape, so there is no block to copy: use "
            "SharedReadout(blocks=0), or cut elsewhere."
        )
    return min(candidates, key=lambda layer: abs(layer - point.layer))


def _find_last_matrix(point: AttachPoint) -> str:
    model = point.layers.model
    for name in reversed(point.layers.parameters[-1]):
        if _has_row_per_output(model.get_parameter(name), point.outputs):
            return name
    raise BadInput(
        f"The last layer has no matrix with a row for each of the {point.outputs} outputs: name "
        "the network's read-out, SharedReadout(readout=...)."
    )


def _find_matrix(point: AttachPoint, name: str) -> Tensor:
    matrix = dict(point.layers.model.named_parameters()).get(name)
    if matrix is None:
        raise BadInput(
            f"SharedReadout(readout={name!r}): the model has no parameter {name!r}. Use one of the "
            "names in model.named_parameters(), or leave readout out."
        )
    if not _has_row_per_output(matrix, point.outputs):
        raise BadInput(
            f"SharedReadout(readout={name!r}): its shape is {tuple(matrix.shape)}, but must have a "
            f"row for each of the {point.outputs} outputs. Name another parameter."
        )
    return matrix


def _has_row_per_output(parameter: Tensor, outputs: int) -> bool:
    return parameter.ndim == 2 and len(parameter) == outputs


@check_arguments
def solo(blocks: int = 2, every: int = 1, readout: str = "") -> Rule:
    """SOLO: local losses of language models that share the network's own last matrix.

    Local losses read out with this matrix and do not train it.

    Equations, with phi_k some blocks and RMSNorm, W the network's read-out and tau_k a learned
    temperature::

        L_k = CE(tau_k * phi_k(h_k) sg(W)^T, y)
        gradient of f_k, phi_k and tau_k = dL_k
        gradient of W = dL_K / dW

    Credit::

        loss0 TTT|...|...|...
        loss1 ...|TTT|...|...
        loss2 ...|...|TTT|...
        loss3 ...|...|...|TTT

    Each head holds a copy of W that is refreshed after every `every`-th step. The paper has 2 or 4
    modules of a language model, and reports that a shared read-out does not help image
    classification. Image networks are accepted nevertheless (see `SharedReadout`).

    Args:
        blocks: transformer blocks in a head.
        every: S, steps between copies; 1 in the paper's pretraining, 50 in its pipelines.
        readout: the name of W; "" for the last matrix (outputs, width) of the last layer.

    Example:
        >>> import localprop as lp
        >>> rule = lp.solo(every=50)

    Reference: Yin, Wang, Pan, Li, SOLO, 2026, arXiv 2609.35440.
    """
    head = SharedReadout(blocks, every, readout)
    return Rule(aux=head, reference="Yin et al. 2026, arXiv 2609.35440")
