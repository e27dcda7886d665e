"""Tasks of a user's own functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from localprop.errors import check
from localprop.tasks.criterion import Criterion, make_task
from localprop.tasks.task import Task, describe, find_targets, read_output

__all__ = ["task"]

Forward = Callable[[nn.Module, Any], Any]
Weight = Callable[[Any], Tensor | float]
Targets = Callable[[Any], Any]


def task(
    forward: Forward | None = None,
    loss: Task | Criterion | None = None,
    weight: Weight | None = None,
    targets: Targets | None = None,
) -> Task:
    """Make a task of functions. What is not given is usual, as `Task` describes it.

    `forward` and `targets` read a batch; `loss` and `weight` read targets. So losses of torch can
    be given as they are.

    Args:
        forward: a function (model, batch) that returns the outputs.
        loss: a function (output, targets) that returns a mean; a loss of torch such as
            `nn.HuberLoss()` or `functional.l1_loss`; or a task, whose loss and weight are taken.
        weight: a function (targets) that returns the denominator of that mean. It is known for
            tasks and for torch's losses, and otherwise measured for each batch.
        targets: a function (batch) that returns what the loss gets: any object. The whole batch is
            `targets=lambda batch: batch`.

    Raises:
        BadInput: the loss is missing or no mean, or an argument is no function.

    Example:
        >>> task(loss=torch.nn.CrossEntropyLoss(ignore_index=0))
        Classification(label_smoothing=0.0, class_weights=None, ignore_index=0, dim=1)
        >>> triples = task(
        ...     forward=lambda model, batch: model(batch[0], mask=batch[1]),
        ...     targets=lambda batch: batch[2],
        ...     loss=lp.Classification(),
        ... )
        >>> triples.weight((None, None, torch.tensor([1, 0, -100])))
        tensor(2)
    """
    functions = {"forward": forward, "weight": weight, "targets": targets}
    problems = [
        f"{name} is {describe(value)}, but must be a function."
        for name, value in functions.items()
        if value is not None and not callable(value)
    ]
    if not isinstance(loss, Task) and not callable(loss):
        problems.append(
            f"loss is {describe(loss)}, but must be a function (output, targets), a loss of "
            "torch, or a task such as lp.Classification()."
        )
    check(problems)
    assert loss is not None
    judge = loss if isinstance(loss, Task) else make_task(loss)
    custom = CustomTask(judge, forward, weight, targets)
    return judge if custom == CustomTask(judge) else custom


@dataclass(frozen=True)
class CustomTask(Task):
    """Another task's loss, for batches and models that need functions of the user's.

    Attributes:
        judge: the task whose loss it is.
        enter: the forward of a batch, if it is not the usual.
        weigh: the weight of targets, if it is not the judge's.
        pick: the targets of a batch, if they are not the usual.
    """

    judge: Task
    enter: Forward | None = None
    weigh: Weight | None = None
    pick: Targets | None = None

    def _make_usual(self, batch: Any) -> Any:
        """The batch in a form in which every task finds the targets."""
        return batch if self.pick is None else (None, self.pick(batch))

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        if self.enter is None:
            return self.judge.forward(model, batch)
        return read_output(self.enter(model, batch))

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        return self.judge.loss(output, self._make_usual(batch))

    def total(self, output: Tensor, batch: Any) -> Tensor:
        if self.weigh is None:
            return self.judge.total(output, self._make_usual(batch))
        return super().total(output, batch)

    def weight(self, batch: Any) -> Tensor | float | None:
        usual = self._make_usual(batch)
        return self.judge.weight(usual) if self.weigh is None else self.weigh(find_targets(usual))

    def targets(self, batch: Any) -> Tensor | None:
        return self.judge.targets(self._make_usual(batch))

    def find_problems(self, batch: Any, outputs: torch.Size) -> Iterable[str]:
        return self.judge.find_problems(self._make_usual(batch), outputs)
