"""The optimizers of a run."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW, Optimizer

from localprop.training.config import Config

# Where torch has kernels that take a whole step.
FUSED_ON = ("cpu", "cuda")


def make_optimizer_factory(config: Config) -> Callable[[list[nn.Parameter]], Optimizer]:
    """Return a function that makes a config's optimizer for a list of parameters.

    With `clip_norm`, each optimizer clips the gradient of its own parameters before it steps. With
    `fused` or `fast` a step is one kernel, where torch has such kernels.
    """

    def make_optimizer(parameters: list[nn.Parameter]) -> Optimizer:
        optimizer = _make_unclipped(config, parameters)
        if config.clip_norm is not None:
            _clip_before_step(optimizer, config.clip_norm)
        return optimizer

    return make_optimizer


def _make_unclipped(config: Config, parameters: list[nn.Parameter]) -> Optimizer:
    is_known = all(parameter.device.type in FUSED_ON for parameter in parameters)
    # None lets torch choose, which never chooses fused kernels.
    fused = True if (config.fused or config.fast) and is_known else None
    if config.optimizer == "sgd":
        return SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=fused,
        )
    optimizer_class = Adam if config.optimizer == "adam" else AdamW
    return optimizer_class(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused)


def _clip_before_step(optimizer: Optimizer, norm: float) -> None:
    """Make an optimizer scale its whole gradient down to `norm` before each step."""

    def clip(optimizer: Optimizer, *_: object) -> None:
        clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)

    optimizer.register_step_pre_hook(clip)
