"""What a task is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from localprop.errors import BadInput
from localprop.tasks.entry import call_model, describe, find_targets, read_output

__all__ = ["Task"]


class Task:
    """What a network is trained for: how a batch enters it, and what its output is worth.

    A batch is whatever a loader yields. The usual ones need no code. Of (inputs, targets), a tensor
    enters as model(inputs), a tuple or list as model(*inputs), a dictionary as model(**inputs). A
    dictionary with its targets among its values enters without them, unless the model is an
    encoder-decoder that makes its decoder's inputs of them. The output is the tensor that the model
    returns, or its `logits`, or `out`, or the only tensor of floating point besides `loss`.

    For other batches write a subclass, or use `task()`.

    Example:
        >>> class Halves(lp.Task):
        ...     def forward(self, model, batch):
        ...         return model(batch["left"], batch["right"])
        ...
        ...     def loss(self, output, batch):
        ...         return (output - batch["sum"]).square().mean()
        ...
        ...     def weight(self, batch):
        ...         return batch["sum"].numel()
    """

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        """Run a model on a batch. The outputs are one tensor.

        Raises:
            BadInput: the batch has no usual form, or the model returns several tensors.
        """
        return read_output(call_model(model, batch))

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        """Compute the loss of outputs, a mean, as a tensor without dimensions."""
        raise NotImplementedError(f"{type(self).__name__} has no loss.")

    def weight(self, batch: Any) -> Tensor | float | None:
        """The denominator of the mean that the loss is, or None where it is not known.

        The sum over parts of a batch of weight(part) / weight(batch) * loss(part) is the loss of
        the batch.
        """
        return None

    def targets(self, batch: Any) -> Tensor | None:
        """The targets, for losses that compare labels; None if there are none."""
        targets = find_targets(batch)
        return targets if isinstance(targets, Tensor) else None

    def find_problems(self, batch: Any, outputs: torch.Size) -> Iterable[str]:
        """Find out what is wrong with a batch.

        Values of targets are read on the CPU alone: on an accelerator that would wait for it.

        Args:
            batch: the batch.
            outputs: the shape of the network's output on it.
        """
        return ()


def require_targets(task: Task, batch: Any) -> Tensor:
    """The targets of a batch.

    Raises:
        BadInput: there are none, or they are no tensor.
    """
    targets = task.targets(batch)
    if targets is None:
        raise BadInput(
            f"The batch has no tensor of targets for {type(task).__name__}, but is "
            f"{describe(batch)}: say where they are, as in task=lp.task(loss={task!r}, "
            "targets=lambda batch: batch['xyz'])."
        )
    return targets
