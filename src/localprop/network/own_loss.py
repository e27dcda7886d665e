"""A task's loss beside the loss that a model computes by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from localprop.errors import BadInput
from localprop.network.untouched import untouched
from localprop.tasks.batch import Batch
from localprop.tasks.hugging_face import get_config
from localprop.tasks.task import EXAMPLE, Task, find_targets, split_batch

# A look at so many samples and positions shows another loss, and costs next to nothing.
_SAMPLES, _POSITIONS = 2, 32


def check_against_own_loss(task: Task, model: nn.Module, batch: Batch) -> None:
    """Compare a task's loss with the loss of a Hugging Face model itself, where it has one.

    It is for tasks that were found. One that the user gave may differ on purpose. The model runs
    twice on a part of the batch, in evaluation mode and without gradients. It is left as it was.

    Args:
        task: the task.
        model: any network. Others than Hugging Face's have no loss of their own.
        batch: a batch.

    Raises:
        BadInput: the losses differ by more than rounding.
    """
    if get_config(model) is None or next(model.parameters()).is_meta:
        return
    data = _take_part(batch).to(next(model.parameters()).device).data
    args, kwargs, targets = split_batch(data)
    with _look_only(model):
        try:
            result = model(*args, **kwargs, **targets)
        except (
            Exception
        ):  # it has no loss for this batch; what is wrong with that is said elsewhere
            return
        own = getattr(result, "loss", None)
        if not isinstance(own, Tensor):
            return
        output = task.forward(model, data)
        loss = task.loss(output, data)
    # Some models compute their loss in float32, whatever their own precision.
    tolerance = max(1e-4, 4 * torch.finfo(output.dtype).eps)
    if not torch.allclose(loss.double(), own.double(), rtol=tolerance, atol=0, equal_nan=True):
        raise BadInput(
            f"The loss of {task!r} is {float(loss):.6g}, but {type(model).__name__} itself "
            f"computes {float(own):.6g} for the same batch. Say what it is trained for: a task "
            "such as task=lp.Classification(dim=-1), or "
            f"{EXAMPLE.format('model(**batch).logits')}."
        )


def divides_by_items(model: nn.Module, batch: Batch) -> bool:
    """Find out whether a Hugging Face model divides its loss by `num_items_in_batch`.

    All that take keywords accept the argument, and some ignore it. The model runs twice on a part
    of the batch, as in `check_against_own_loss`.

    Args:
        model: it takes keywords, and has a loss of its own.
        batch: a batch with labels.
    """
    data = _take_part(batch).to(next(model.parameters()).device).data
    many = torch.tensor(1e6, device=next(model.parameters()).device)
    with _look_only(model):
        mean, shared = model(**data).loss, model(**data, num_items_in_batch=many).loss
    return not torch.allclose(mean, shared, equal_nan=True)


def _take_part(batch: Batch) -> Batch:
    """A few samples; of sequences with a label per position, a few positions."""
    part, targets = batch.select(min(_SAMPLES, batch.samples)), find_targets(batch.data)
    if not isinstance(targets, Tensor) or targets.ndim != 2:
        return part
    length = targets.shape[1]
    return part.map(
        lambda tensor: (
            tensor[:, :_POSITIONS] if tensor.ndim == 2 and tensor.shape[1] == length else tensor
        )
    )


@contextmanager
def _look_only(model: nn.Module) -> Iterator[None]:
    """Run a model in a block without a trace."""
    config: Any = model.config
    problem = getattr(config, "problem_type", None)  # a forward fills it in
    try:
        with untouched(model), torch.no_grad():
            model.eval()
            yield
    finally:
        if getattr(config, "problem_type", None) != problem:
            config.problem_type = problem
