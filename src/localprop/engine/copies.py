"""P: network parameters that auxiliary networks hold copies, or averages, of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from localprop.engine.store import StepContext
from localprop.engine.undo import Undo
from localprop.schedule.wiring import Objective, Wiring


class _Copy(NamedTuple):
    target: Tensor
    source: Tensor
    decay: float
    every: int


class CopyParameters:
    """P: refresh the copies that the auxiliary network of a loss holds.

    Args:
        wiring: knows the copies.
        model: the network.
        objective: the loss.
        undo: keeps the copies as they are, if steps can be taken back.
    """

    def __init__(
        self, wiring: Wiring, model: nn.Module, objective: Objective, undo: Undo | None = None
    ) -> None:
        self._undo = undo
        named, head = dict(model.named_parameters()), wiring.head(objective)
        self._copies = [
            _Copy(
                head.get_parameter(each.target),
                named[each.copy.source],
                each.copy.decay,
                each.copy.every,
            )
            for each in objective.copies
        ]

    # Actions run with autograd on, which would record the copy.
    @torch.no_grad()
    def __call__(self, step: StepContext) -> None:
        """Copy or average in the steps that it is due in."""
        if self._undo is not None:
            self._undo.keep_tensors(each.target for each in self._copies)
        for target, source, decay, every in self._copies:
            if step.number % every == 0:
                # With decay 0 the weight is 1, and lerp returns the source itself, to the bit. A
                # copy needs no case of its own.
                target.lerp_(source.to(target.dtype), 1 - decay)

    @torch.no_grad()
    def initialise(self) -> None:
        """Before the first step, make copies of what is copied and not averaged."""
        for target, source, decay, _ in self._copies:
            # A copy may be used before its first P. An average has a beginning of its own, which
            # its head has chosen.
            if decay == 0:
                target.copy_(source)
