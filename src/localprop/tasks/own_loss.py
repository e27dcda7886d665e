"""A task's loss beside the loss that a model computes by itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from localprop.errors import BadInput
from localprop.tasks.hugging_face import get_config
from localprop.tasks.task import EXAMPLE, Task, split_batch


def check_against_own_loss(task: Task, model: nn.Module, batch: Any) -> None:
    """Compare a task's loss with the loss of a Hugging Face model itself, where it has one.

    It is for tasks that were found. One that the user gave may differ on purpose. The model runs
    twice, in evaluation mode and without gradients. It is left as it was.

    Args:
        task: the task.
        model: any network. Others than Hugging Face's have no loss of their own.
        batch: a batch on the model's device; a small one does.

    Raises:
        BadInput: the losses differ by more than rounding.
    """
    if get_config(model) is None:
        return
    args, kwargs, targets = split_batch(batch)
    with _look_only(model):
        result = model(*args, **kwargs, **targets)
        own = getattr(result, "loss", None)
        if not isinstance(own, Tensor):
            return
        output = task.forward(model, batch)
        loss = task.loss(output, batch)
    # Some models compute their loss in float32, whatever their own precision.
    tolerance = max(1e-4, 4 * torch.finfo(output.dtype).eps)
    if not torch.allclose(loss.double(), own.double(), rtol=tolerance, atol=0, equal_nan=True):
        raise BadInput(
            f"The loss of {task!r} is {float(loss):.6g}, but {type(model).__name__} itself "
            f"computes {float(own):.6g} for the same batch. Say what it is trained for: a task "
            "such as task=lp.Classification(dim=-1), or "
            f"{EXAMPLE.format('model(**batch).logits')}."
        )


@contextmanager
def _look_only(model: nn.Module) -> Iterator[None]:
    """Run a model in a block without a trace: modes, buffers, random states and configuration."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    config: Any = model.config
    problem = getattr(config, "problem_type", None)  # a forward fills it in
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    state = random.getstate()
    try:
        with torch.no_grad(), torch.random.fork_rng([*devices]):
            model.eval()
            yield
    finally:
        random.setstate(state)
        for module, training in modes:
            module.training = training
        for buffer, before in buffers:
            if not buffer.equal(before):
                buffer.data.copy_(before)
        if getattr(config, "problem_type", None) != problem:
            config.problem_type = problem
