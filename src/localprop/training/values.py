"""What can be wrong with the values of a config, each with its fix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localprop.training.config import Config

COSINES = ("cosine", "cosine_above_zero")
CHOICES = {
    "optimizer": ("sgd", "adam", "adamw"),
    "lr_schedule": (*COSINES, "multistep", "constant"),
    "precision": ("fp32", "bf16"),
}
MAY_DIFFER = ("device", "root", "download", "timeout_s", "workers")  # where a run goes on, not what it computes
_USUAL_MOMENTUM = 0.9


def value_problems(config: Config) -> Iterator[str]:
    """All that is wrong with values of the right types, one sentence each."""
    for name in ("epochs", "batch_size", "microbatches", "modules", "replicas"):
        value = getattr(config, name)
        if value is not None and value < 1:
            yield f"{name}={value}, but at least 1 is needed: raise it."
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        if value not in choices:
            yield f"{name}={value!r} is unknown: choose {' or '.join(choices)}."
    yield from _optimizer_problems(config)
    yield from _schedule_problems(config)
    yield from _cut_problems(config)
    if not 0 <= config.label_smoothing < 1:
        yield f"label_smoothing={config.label_smoothing} must lie in [0, 1): try 0.1."
    if not 0 <= config.seed < 2**63:
        yield f"seed={config.seed} must lie in 0..2**63-1: choose another."
    if not 0 < config.timeout_s < math.inf:
        yield f"timeout_s={config.timeout_s} must be positive and finite: try 300."
    if config.microbatches > config.batch_size >= 1:
        yield f"microbatches={config.microbatches} of a batch of {config.batch_size}: use {config.batch_size} or fewer."


def _optimizer_problems(config: Config) -> Iterator[str]:
    if not 0 < config.lr < math.inf:
        yield f"lr={config.lr} must be positive and finite: try 0.1."
    if not 0 <= config.momentum < 1:
        yield f"momentum={config.momentum} must lie in [0, 1): try 0.9."
    elif config.optimizer == "sgd":
        if config.nesterov and config.momentum == 0:
            yield "nesterov=True needs a momentum, but momentum=0: switch nesterov off too."
    elif config.momentum != _USUAL_MOMENTUM:
        yield f"momentum={config.momentum} is for optimizer=sgd, but {config.optimizer} has none: leave it out."
    if not 0 <= config.weight_decay < math.inf:
        yield f"weight_decay={config.weight_decay} must be 0 or more, and finite: try 1e-4."
    if config.clip_norm is not None and not 0 < config.clip_norm < math.inf:
        yield f"clip_norm={config.clip_norm} must be positive and finite: try 1, or leave it out."


def _schedule_problems(config: Config) -> Iterator[str]:
    if config.lr_schedule == "cosine" and config.epochs == 1:
        yield "epochs=1 of a cosine schedule is its end, a learning rate of 0: use 2 or more, or lr_schedule=constant."
    if config.epochs >= 1 and not 0 <= config.warmup < config.epochs:
        room = f"it must lie in 0..{config.epochs - 1} for {config.epochs} epochs"
        yield f"warmup_epochs={config.warmup}, but {room}: try --warmup-epochs 0."
    steps = config.milestones
    if config.lr_schedule != "multistep":
        if steps:
            yield f"milestones={steps} are for lr_schedule=multistep, not {config.lr_schedule}: leave them out."
    elif not steps or list(steps) != sorted({*steps}) or steps[0] < 1 or steps[-1] >= config.epochs:
        yield f"milestones={steps} must be epochs that increase, between 1 and {config.epochs - 1}: give one or more."
    if not 0 < config.lr_factor < math.inf:
        yield f"lr_factor={config.lr_factor} must be positive and finite: try 0.1."


def _cut_problems(config: Config) -> Iterator[str]:
    if config.cuts is None:
        return
    if config.modules is not None and config.modules != len(config.cuts) + 1:
        yield f"modules={config.modules}, but cuts={config.cuts} make {len(config.cuts) + 1}: leave one of them out."
    if list(config.cuts) != sorted({*config.cuts}) or any(cut < 0 for cut in config.cuts):
        yield f"cuts={config.cuts} must be numbers of layers, from 0, that increase: sort them."
