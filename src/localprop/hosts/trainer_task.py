"""The loss of a batch as Hugging Face's Trainer takes it: a part of the loss of a whole step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from localprop.tasks.task import Task

HostLoss = Callable[[Tensor, Any, Any], Tensor]


class TrainerTask(Task):
    """A task whose loss is a part of the loss of several batches, which accumulate.

    Args:
        task: how a batch enters the model, and the mean that its loss is.
        by_items: whether the loss is a sum, divided by the number of items of all batches.
        host_loss: the host's own function (output, batch, items), if it has one.

    Example:
        >>> task = TrainerTask(lp.Classification(), by_items=True)
        >>> batch = (None, torch.tensor([0, 1, -100]))
        >>> task.loss(torch.zeros(3, 2), batch)
        tensor(0.6931)
        >>> with task.counting(4):
        ...     task.loss(torch.zeros(3, 2), batch)
        tensor(0.3466)
    """

    def __init__(self, task: Task, *, by_items: bool, host_loss: HostLoss | None = None) -> None:
        self.task, self.by_items = task, by_items
        self.has_fixed_outputs = task.has_fixed_outputs  # type: ignore[misc]
        self._host_loss = host_loss
        self._items: Tensor | float | None = None

    @contextmanager
    def counting(self, items: Tensor | float | None) -> Iterator[None]:
        """Within the block, losses belong to a step with so many items; None if nobody counts."""
        before, self._items = self._items, items
        try:
            yield
        finally:
            self._items = before

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        return self.task.forward(model, batch)

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        if self._host_loss is not None:
            return self._host_loss(output, batch, self._items)
        if self._items is None or not self.by_items:
            return self.task.loss(output, batch)
        # A sum, and no mean times a share: this rounds as the host does.
        return self.task.total(output, batch) / self._items

    def weight(self, batch: Any) -> Tensor | float | None:
        return self.task.weight(batch)

    def targets(self, batch: Any) -> Tensor | None:
        return self.task.targets(batch)

    def find_problems(self, batch: Any, outputs: torch.Size) -> Iterable[str]:
        return self.task.find_problems(batch, outputs)

    def __repr__(self) -> str:
        return f"TrainerTask({self.task!r})"
