"""What a local loss is, and what it sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Batch", "LocalLoss", "LossInputs"]


class Batch(NamedTuple):
    """One batch of training data.

    Attributes:
        inputs: the network's inputs (N, ...).
        targets: the targets, (N,) or one per position (N, T).
    """

    inputs: Tensor
    targets: Tensor


class LossInputs(NamedTuple):
    """What a loss may read besides its module's features.

    Attributes:
        network_input: the network's input (N, ...).
        targets: the targets, (N,) or one per position (N, T).
        module_input: the input of the loss's module (N, ...), if the loss asks for it.
        taps: the inner outputs that the loss asks for, by the names of the modules that return
            them.
        gradients: for second-order losses, one list that all losses of a step share. A loss may
            leave a gradient there for the loss of the next module.
    """

    network_input: Tensor
    targets: Tensor
    module_input: Tensor | None = None
    taps: Mapping[str, Tensor] = MappingProxyType({})
    gradients: list[Tensor] | None = None


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

    def find_problems(self, targets: Tensor, outputs: torch.Size) -> Iterable[str]:
        """Find out what is wrong with targets.

        Args:
            targets: the targets of a batch, on the CPU.
            outputs: the shape of the network's output.
        """
        return ()
