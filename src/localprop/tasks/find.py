"""The usual task of a model and a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from localprop.arguments import check_arguments
from localprop.errors import BadInput
from localprop.tasks.batch import check_samples_in_dimensions
from localprop.tasks.classification import Classification, sum_to_one
from localprop.tasks.elementwise import MultiLabel, Regression
from localprop.tasks.hugging_face import find_hugging_face_task
from localprop.tasks.task import EXAMPLE, Task, describe, split_batch

__all__ = ["find_task"]


@check_arguments
def find_task(model: nn.Module, batch: Any) -> Task:
    """Find the usual task of a model and a batch.

    Models of Hugging Face are known by the names of their classes and by their configurations.
    For other models, the targets decide: whole numbers are classes; rows of numbers with the sum 1
    are probabilities of classes; rows of 0 and 1 are several classes per sample; other numbers are
    regression. Single numbers of 0 and 1 can be two of them, so the task is asked for.

    Args:
        model: the network. It is not run.
        batch: a batch as a loader yields it. The values of its targets are read.

    Raises:
        BadInput: no task is usual, or two are.

    Example:
        >>> find_task(nn.Linear(2, 3), (torch.zeros(4, 2), torch.zeros(4, 3).long()))
        Classification(label_smoothing=0.0, class_weights=None, ignore_index=-100, dim=None)
        >>> find_task(nn.Linear(2, 1), (torch.zeros(2, 2), torch.tensor([2.5, 7.0])))
        Regression()
    """
    targets = next(iter(_split_targets(batch)), None)
    found = find_hugging_face_task(model, targets)
    if found is not None:
        return found
    if not isinstance(targets, Tensor):
        check_samples_in_dimensions(batch)
        raise BadInput(
            f"No task is usual for {type(model).__name__} with the batch {describe(batch)}: say "
            f"what it is trained for, as in {EXAMPLE.format('model(**batch).xyz')}, "
            "with targets=lambda batch: ... for what the loss gets."
        )
    return _find_by_targets(targets)


def _split_targets(batch: Any) -> list[Any]:
    try:
        return [*split_batch(batch).targets.values()]
    except BadInput:  # a batch of another form has no usual targets
        return []


def _find_by_targets(targets: Tensor) -> Task:
    if not targets.is_floating_point() and targets.dtype != torch.bool:
        return Classification()
    several = targets.ndim > 1 and targets.shape[1] > 1
    if several and not (targets < 0).any() and sum_to_one(targets, 1):
        return Classification()
    if ((targets != 0) & (targets != 1)).any():
        return Regression()
    if several:
        return MultiLabel()
    raise BadInput(
        f"The targets {describe(targets)} are all 0 or 1: say what they are, with "
        "task=lp.MultiLabel() for one output that says yes or no, task=lp.Regression() for "
        "numbers, or task=lp.Classification() for classes, as targets.long()."
    )
