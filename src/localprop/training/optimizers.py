"""The optimizers of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from localprop.training.config import Config


def optimizer_of(config: Config) -> Callable[[list[nn.Parameter]], Optimizer]:
    """A factory of the optimizer of a config."""
    from torch.optim import SGD, Adam, AdamW

    def make(parameters: list[nn.Parameter]) -> Optimizer:
        if config.optimizer != "sgd":
            kind = Adam if config.optimizer == "adam" else AdamW
            return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)
        return SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )

    norm = config.clip_norm
    return make if norm is None else lambda parameters: _clipped(make(parameters), norm)


def _clipped(optimizer: Optimizer, norm: float) -> Optimizer:
    """An optimizer that brings the norm of its whole gradient down to `norm` before each step."""
    from torch.nn.utils import clip_grad_norm_

    def clip(optimizer: Optimizer, *_: object) -> None:
        clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)

    optimizer.register_step_pre_hook(clip)
    return optimizer
