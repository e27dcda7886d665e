"""What a local loss is, and what it sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["LocalLoss", "LossInputs"]


class LossInputs(NamedTuple):
    """What a loss may read besides its module's features.

    Attributes:
        network_input: the network's input (N, ...): the batch's first tensor of floating point that
            is no target, or its first tensor.
        targets: the task's targets, for example (N,) or one per position (N, T).
        module_input: the input of the loss's module (N, ...), if the loss asks for it.
        taps: the inner outputs that the loss asks for, by the names of the modules that return
            them.
        gradients: for second-order losses, one list that all losses of a step share. A loss may
            leave a gradient there for the loss of the next module.
        batch: the whole batch, as the loader gives it.
        task_weight: what the task's loss of this micro-batch counts, relative to that of its
            samples: more than 1 where fewer labels than elsewhere are ignored. The task's own loss
            multiplies by it, and then all losses are weighted by samples.
    """

    network_input: Tensor
    targets: Tensor
    module_input: Tensor | None = None
    taps: Mapping[str, Tensor] = MappingProxyType({})
    gradients: list[Tensor] | None = None
    batch: Any = None
    task_weight: Tensor | float = 1.0


class LocalLoss(nn.Module):
    """A loss at a module's end: forward(features, aux, inputs) -> scalar, a mean over the batch.

    It may own parameters. They are trained with the auxiliary network.

    Attributes:
        module_input: whether the loss reads its module's input, `inputs.module_input`. It gets a
            constant.
        taps: names of modules of the network, within the loss's own module, whose outputs the loss
            reads in `inputs.taps`. The gradient with respect to a tap trains the layers up to it.
        second_order: whether the loss differentiates through its module. `features` and
            `inputs.module_input` then belong to the module's autograd graph. Such a loss needs a
            single process, modules that are whole segments, and no recompute.
        uses_aux: whether the loss reads the auxiliary network. One that nobody reads is not
            trained, and the arguments of its builder have no effect (`Learner.notes`).
    """

    module_input: bool = False
    taps: tuple[str, ...] = ()
    second_order: bool = False
    uses_aux: bool = True

    def forward(self, features: Tensor, aux: nn.Module, inputs: LossInputs) -> Tensor:
        """Compute the loss.

        Args:
            features: the output of the loss's module (N, ...).
            aux: the auxiliary network.
            inputs: what else the loss may read.
        """
        raise NotImplementedError

    def find_problems(self, inputs: LossInputs, outputs: torch.Size) -> Iterable[str]:
        """Find out what is wrong with a batch.

        Args:
            inputs: the batch and its targets. Values of targets are read on the CPU alone.
            outputs: the shape of the network's output on it.
        """
        return ()
