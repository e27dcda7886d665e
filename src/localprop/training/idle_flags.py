"""Find flags that were given and have no effect, such as --momentum with Adam."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from localprop.data.loading import is_folder, is_npz, is_text
from localprop.data.sources import augment_of, find_name_problems
from localprop.errors import BadInput, check
from localprop.ranks.launch import get_world_size
from localprop.training.build import options_of
from localprop.training.config import Config
from localprop.training.device import find_device
from localprop.training.field_types import format_flag
from localprop.training.optimizers import FUSED_ON


def check_flags(given: Mapping[str, Any], config: Config) -> None:
    """Refuse flags without effect.

    Args:
        given: the fields that were given as flags.
        config: the config of the run.

    Raises:
        BadInput: there are such flags. It also lists the problems of the config's values.
    """
    idle = list(find_idle_flags(given, config))
    if idle:
        check([*idle, *config.find_problems()])


def find_idle_flags(given: Iterable[str], config: Config) -> Iterator[str]:
    """Find flags that change nothing in the run, one sentence each.

    Args:
        given: the fields that were given as flags.
        config: the config of the run. The problems of its values are not reported here.

    Example:
        >>> list(find_idle_flags({"momentum": 0.9}, Config(optimizer="adam")))
        ['--momentum has no effect with --optimizer adam: leave it out.']
    """
    given = {*given}
    config = config.with_valid_defaults()
    for field, reason in _find_idle_fields(given, config):
        if field in given:
            yield f"{format_flag(field)} has no effect {reason}."


def _find_idle_fields(given: set[str], config: Config) -> Iterator[tuple[str, str]]:
    """Find fields that change nothing, each with the reason and the fix."""
    yield from _find_idle_optimizer_fields(config)
    yield from _find_idle_speeds(config)
    if get_world_size() == 1:
        for field in ("replicas", "timeout_s"):
            if getattr(config, field) != getattr(Config, field):
                yield field, "in one process: leave it out, or start with torchrun"
    if config.init is None:
        yield "init_order", "without --init: leave it out, or add --init FILE"
    if list(find_name_problems(config.data, options_of(config))):
        return  # loading the data reports them
    yield from _find_idle_data_fields(config)
    yield from _find_idle_schedule_fields(config)
    if given & {"padding", "crop_pad", "cutout"}:
        yield from _find_idle_augment_fields(config)


def _find_idle_optimizer_fields(config: Config) -> Iterator[tuple[str, str]]:
    if config.optimizer not in ("adam", "adamw"):
        return
    reason = f"with --optimizer {config.optimizer}: leave it out"
    if config.momentum == Config.momentum:  # the config itself refuses other values
        yield "momentum", reason
    yield "nesterov", reason


def _find_idle_speeds(config: Config) -> Iterator[tuple[str, str]]:
    if config.fast:
        for field in ("channels_last", "fused", "tf32"):
            yield field, "with --fast, which decides that: leave it out"
        return
    if config.precision in ("bf16", "fp16"):
        yield "tf32", f"with --precision {config.precision}: leave one of them out"
    with suppress(BadInput):  # of an unknown device, which the config reports
        kind = find_device(config.device).type
        if kind != "cuda":
            yield "tf32", f"on {kind}, which has no TF32: leave it out"
        if kind not in FUSED_ON:
            yield "fused", f"on {kind}, for which torch has no such kernels: leave it out"


def _find_idle_schedule_fields(config: Config) -> Iterator[tuple[str, str]]:
    if config.lr_schedule not in ("multistep", "cosine_after_warmup"):
        yield "lr_factor", f"with --lr-schedule {config.lr_schedule}: leave it out"
    if config.warmup == 0:
        yield "warmup_from", "without a warm-up: leave it out, or add --warmup-epochs"


def _find_idle_data_fields(config: Config) -> Iterator[tuple[str, str]]:
    if is_text(config.data):
        yield "validation", "on text, of which a tenth is held out: leave it out"
    else:
        yield "context", "on images: leave it out"
    if not is_folder(config.data):
        for field in ("image_size", "workers"):
            yield field, "without a folder of images: leave it out"
    if not is_npz(config.data):
        yield "layout", "without a .npz file: leave it out"
    if config.data in ("digits", "text"):
        for field in ("root", "download"):
            yield field, f"on {config.data}, which needs no files: leave it out"
    elif is_npz(config.data) or is_folder(config.data) or is_text(config.data):
        yield "download", "on files of your own: leave it out"


def _find_idle_augment_fields(config: Config) -> Iterator[tuple[str, str]]:
    augment = augment_of(config.data, options_of(config))
    fix = "leave it out, or add it to --augment"
    if not augment.pad:
        for field in ("padding", "crop_pad"):
            yield field, f"without the augmentation 'crop': {fix}"
    if not augment.cutout:
        yield "cutout", f"without the augmentation 'cutout': {fix}"
