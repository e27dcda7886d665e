"""The learning rate of each epoch, by the schedule of a config."""

from __future__ import annotations

import math

from localprop.training.config import COSINES, Config


def lr_at(config: Config, epoch: int) -> float:
    """The learning rate of an epoch: its schedule, mixed with a small start during the warm-up.

    With E epochs and w of them of warm-up, the schedule b(e) of epoch e is

        cosine                lr (1 + cos(pi e / E)) / 2
        cosine_above_zero     lr (1 + cos(pi (e - 1) / E)) / 2
        cosine_after_warmup   f lr + (1 - f) lr (1 + cos(pi (e - 1 - w) / (E - w))) / 2,
                              with f = lr_factor; lr for e <= w
        multistep             lr times lr_factor for each milestone m < e
        constant              lr

    With s = warmup_from, or lr / 10, the learning rate is
    b(e) (e - 1) / w + s (w + 1 - e) / w for e <= w, and b(e) afterwards. The last epoch of a cosine
    has 0, so that only the statistics of BatchNorm move. The first epoch of cosine_above_zero
    has lr. So has a single epoch of any schedule, which makes it a test of everything.

    Args:
        config: gives lr, lr_schedule, epochs and the warm-up.
        epoch: from 1.

    Example:
        >>> config = Config(lr=0.8, epochs=160, warmup_from=0.01)
        >>> [round(lr_at(config, epoch), 5) for epoch in (1, 2, 11, 80, 160)]
        [0.01, 0.08897, 0.79071, 0.4, 0.0]

    Source: the official code of InfoPro, AugLocal and ContSup; cosine_above_zero: AugLocal's for
    ImageNet; cosine_after_warmup: TRGL's for Swin-T, where it changes in every batch.
    """
    scheduled, warmup = _compute_scheduled_lr(config, epoch), config.warmup
    if epoch > warmup:
        return scheduled
    start = config.lr / 10 if config.warmup_from is None else config.warmup_from
    return scheduled * (epoch - 1) / warmup + start * (warmup + 1 - epoch) / warmup


def _compute_scheduled_lr(config: Config, epoch: int) -> float:
    if config.epochs == 1:
        return config.lr
    if config.lr_schedule == "cosine_after_warmup":
        position = max(epoch - 1 - config.warmup, 0) / (config.epochs - config.warmup)
        share = 0.5 * (1 + math.cos(math.pi * position))
        return config.lr * (config.lr_factor + (1 - config.lr_factor) * share)
    if config.lr_schedule in COSINES:
        position = epoch if config.lr_schedule == "cosine" else epoch - 1
        return 0.5 * config.lr * (1 + math.cos(math.pi * position / config.epochs))
    if config.lr_schedule == "multistep":
        passed = sum(epoch > milestone for milestone in config.milestones)
        return config.lr * config.lr_factor**passed
    return config.lr
