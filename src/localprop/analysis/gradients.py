"""How far the gradients of a local rule agree with those of end-to-end training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from localprop.analysis.outputs import check_one_process
from localprop.arguments import check_arguments
from localprop.errors import BadInput
from localprop.learner import Learner
from localprop.methods.baselines import end_to_end
from localprop.network.partition import Partition
from localprop.network.untouched import untouched
from localprop.writing.tables import format_table


@dataclass(frozen=True)
class GradientAgreement:
    """The cosine between the local and the end-to-end gradient of each layer's parameters.

    Attributes:
        layers: the names of the layers.
        modules: the module that each of them belongs to.
        cosines: of each, in -1..1; None where a layer has no trainable parameters, or one of both
            gradients is zero.
    """

    layers: tuple[str, ...]
    modules: tuple[int, ...]
    cosines: tuple[float | None, ...]

    def __str__(self) -> str:
        rows = [
            [layer, str(module), "–" if cosine is None else f"{cosine:.4f}"]
            for layer, module, cosine in zip(self.layers, self.modules, self.cosines, strict=True)
        ]
        return format_table(["layer", "module", "cosine"], rows)


@check_arguments
def compare_gradients(learner: Learner, batch: Any) -> GradientAgreement:
    """Compare a rule's gradients with those of end-to-end training, at the same parameters.

    Both are computed on one batch by the same engine, in the mode that the network is in, with the
    same precision, micro-batches and random draws. The gradient of a layer is that of all its
    trainable parameters together; a parameter that several layers share counts in each. Contexts
    (ContSup) are constants in both, as the rule has them; a rule that has both contexts and
    backward links draws its dropout anew. Nothing is stepped, and the learner stays as it was, with
    gradients that are in `.grad`.

    Args:
        learner: in one process, without float16.
        batch: (inputs, targets) as the learner steps on.

    Returns:
        The cosines by layer: 1 for the same direction, 0 for none in common.

    Raises:
        BadInput: the learner is on several ranks, has precision="fp16", or copies parameters right
            after their step; or the batch does not fit.
        StepFailed: an action failed.
        NotFinite: a loss or a gradient is NaN or infinite.

    Example:
        >>> batch = (torch.randn(8, 1, 8, 8), torch.arange(8))
        >>> found = lp.analysis.compare_gradients(learner, batch)
        >>> found.cosines[-1]
        1.0
    """
    check_one_process(learner)
    if learner.scaler.is_enabled():
        raise BadInput(
            "Gradients of float16 are scaled, and small ones are zero: make a learner with "
            "precision='bf16' or 'fp32', load the same state, and compare its gradients."
        )
    local = _read_gradients(learner, batch)
    whole = _read_gradients(_make_end_to_end(learner), batch)
    layers, partition = learner.partition.layers, learner.partition
    return GradientAgreement(
        layers=layers.names,
        modules=tuple(partition.module_of(layer) for layer in range(len(layers))),
        cosines=tuple(
            _find_cosine([local[name] for name in own], [whole[name] for name in own])
            for own in ([name for name in each if name in local] for each in layers.parameters)
        ),
    )


def _make_end_to_end(learner: Learner) -> Learner:
    """A learner of the same network that is trained end to end, with the same random draws.

    Draws belong to segments, so its modules are the learner's segments; where there are contexts,
    which belong to modules, it keeps the modules.
    """
    partition = learner.partition
    if not len(learner.encoders):
        cuts = tuple(segment.layers[0] for segment in learner.wiring.segments[1:])
        partition = Partition(partition.layers, cuts)
    rule = replace(end_to_end(), context=learner.rule.context)
    whole = learner.try_rule(rule, partition, lambda parameters: torch.optim.SGD(parameters))
    whole.encoders.load_state_dict(learner.encoders.state_dict())
    for own, like in zip(whole.encoders.modules(), learner.encoders.modules(), strict=True):
        own.training = like.training
    whole.steps = learner.steps
    return whole


def _read_gradients(learner: Learner, batch: Any) -> dict[str, Tensor]:
    """The gradient of each trainable parameter of the primary network, zero where it gets none."""
    with _taken_back(learner):
        learner.backward(batch)
        return {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in learner.model.named_parameters()
            if parameter.requires_grad
        }


@contextmanager
def _taken_back(learner: Learner) -> Iterator[None]:
    """Within the context no parameter has a gradient; then all is as it was."""
    trained = nn.ModuleList([learner.model, learner.heads, learner.encoders])
    gradients = [(parameter, parameter.grad) for parameter in trained.parameters()]
    # Heads may hold running averages of the network's parameters, which a backward moves.
    kept = [(parameter, parameter.detach().clone()) for parameter in learner.heads.parameters()]
    steps = learner.steps
    with untouched(trained):
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for parameter, value in kept:
                    parameter.copy_(value)
            learner.steps = steps


def _find_cosine(first: list[Tensor], second: list[Tensor]) -> float | None:
    def multiply(ones: list[Tensor], others: list[Tensor]) -> float:
        pairs = zip(ones, others, strict=True)
        return math.fsum(float((a.double() * b.double()).sum()) for a, b in pairs)

    squares = multiply(first, first) * multiply(second, second)
    return multiply(first, second) / math.sqrt(squares) if squares > 0 else None
