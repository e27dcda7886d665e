"""The configuration of a run: a record of everything that it depends on, and checks of its values.

Nothing here imports torch at module level, because `localprop --help` reads the fields.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from numbers import Number
from typing import TYPE_CHECKING, Any, get_type_hints

from localprop.arguments import has_type, list_alternatives
from localprop.errors import collect_problems
from localprop.ranks.heartbeat import find_timeout_problems
from localprop.training.device import find_device
from localprop.training.field_types import describe_mistyped
from localprop.training.phases import find_cycle_problems, parse_phases

if TYPE_CHECKING:
    from localprop.rule.rule import Rule

__all__ = ["Config"]

COSINES = ("cosine", "cosine_above_zero", "cosine_after_warmup")

CHOICES = {
    "optimizer": ("sgd", "adam", "adamw"),
    "lr_schedule": (*COSINES, "multistep", "constant"),
    "precision": ("fp32", "bf16", "fp16"),
    "weight_gradients": ("once", "each"),
    "on_nonfinite": ("raise", "skip", "ignore"),
}

# These fields say where a run takes place. A resumed run may change them.
MAY_DIFFER = ("device", "root", "download", "timeout_s", "workers")
# What a measurement of a trained network may change.
OF_EVALUATION = ("data", "root", "download", "batch_size", "device", "workers")


# The command line reads the flags' help from the section "Attributes" of this docstring.
@dataclass(frozen=True)
class Config:
    """Everything that a run depends on. The defaults train on two CPU cores in half a minute.

    Attributes:
        model: a name of localprop.models such as resnet32, mlp:512,512 (hidden widths) or
            transformer:width=64,blocks=2 (for text), timm:NAME, torchvision:NAME, hf:TYPE or
            hf:PATH (transformers), or a function of your own, my_code.py:make or my_module:make;
            timm:NAME,pretrained=True begins with the weights that timm has.
        init: a file of weights to begin with, .safetensors or a state_dict of torch.save, which is
            read without running code; tensors go to the parameters of their names, and a classifier
            with another number of outputs stays as it is.
        init_order: with init, give the tensors of the file by position and shape instead of by
            name, and print which went where.
        freeze: parameters that are not trained, by their names: "stem.*", or with commas
            "stem.*,blocks.0.*"; statistics of BatchNorm go on moving.
        data: digits, cifar10, cifar100, svhn, svhn_extra, stl10, mnist, fashion_mnist, kmnist, a
            path that ends in .npz, or folder:PATH; for language models text (part of every Python)
            or a path that ends in .txt.
        method: the training rule as an expression, such as "backlink(layers=2)",
            "greedy(aux=Head(convs=0))" or, for a function of your own,
            "my_module:my_method(alpha=0.1)"; in Python also a Rule.
        phases: several methods in turn instead of one, such as
            "greedy() for 4; end_to_end() for 1", or one module after the other,
            "greedy() for 50 on 0; greedy() for 60 on 1"; repeated until all epochs are used.
        modules: the number of local modules; one per layer if not given.
        cuts: instead of modules, the number of the last layer of each module but the final one,
            from 0.
        epochs: passes over the training data; with the cosine schedule the last one has a learning
            rate of 0, unless it is the only one.
        batch_size: images, or windows of text, per batch.
        optimizer: sgd, adam or adamw.
        lr: the highest learning rate.
        momentum: momentum of sgd.
        nesterov: use Nesterov's momentum in sgd.
        weight_decay: weight decay of all parameters.
        clip_norm: the largest norm of the gradient of each segment and of each auxiliary network;
            no clipping if not given.
        label_smoothing: label smoothing of the task's loss, which is the last module's.
        lr_schedule: cosine (per epoch, after a warm-up), cosine_above_zero (one epoch later, so
            that the first epoch has lr and the last one more than 0), cosine_after_warmup (from lr
            in the first epoch after the warm-up towards lr_factor * lr), multistep or constant.
        warmup_epochs: epochs of linear warm-up; if not given, a tenth of the epochs but at most 10
            with a cosine, and none without.
        warmup_from: the learning rate of the first epoch of the warm-up; a tenth of lr if not
            given.
        milestones: the epochs after which multistep multiplies the learning rate by lr_factor.
        lr_factor: the factor of multistep, and where cosine_after_warmup ends.
        seed: seed of initial weights, data order, augmentation and every random draw of a step.
        device: auto (the accelerator if there is one), cpu, or one of torch's names such as cuda:1.
        precision: fp32, bf16 (autocast), or fp16 (autocast with a GradScaler; in one process).
        channels_last: keep the channels of a pixel side by side, for faster convolutions.
        fused: let an optimizer take its whole step in one kernel, on a CPU or CUDA device.
        tf32: multiply matrices of float32 with 11 significant bits (TF32) on CUDA devices.
        fast: take what gains on the device and changes rounding alone: channels_last, bf16 and
            fused.
        recompute: compute activations again in the backward instead of keeping them: of all layers,
            of every n-th (2), of some ("blocks.1,blocks.2", "blocks.*"), of stretches together
            ("a..f(a..c),h"; those in brackets run once more), or of the layers of each module
            together ("modules").
        offload: keep activations in the host's memory, pinned on CUDA, instead of on the device.
        microbatches: micro-batches that a batch is split into; gradients accumulate.
        weight_gradients: where several flows of gradients train layers, once (of their sum, which
            is faster) or each (by each flow, which needs less memory).
        on_nonfinite: what a loss or a gradient that is NaN or infinite does: raise (end the run
            before any parameter changes), skip (the batch, as if it had never come) or ignore.
        atomic: let optimizers step last, so that a step that fails changes nothing; by default
            where there is one process.
        replicas: under torchrun, the number of pipelines; each gets its share of every batch, in
            that many micro-batches.
        timeout_s: under torchrun, seconds to wait for another rank before it counts as lost.
        augment: none, or several of crop, flip, cutout and random_resized_crop (folders only), as
            in "crop,flip"; if not given, the data set's usual augmentation.
        padding: padding of crop, reflect or zeros; if not given, the data set's usual padding.
        crop_pad: pixels that crop adds on each side; if not given, 4 or the data set's usual
            number.
        cutout: side of the square that cutout removes, in pixels.
        mean: mean for the normalisation of images, one number per channel or one for all; if not
            given, the data set's usual mean.
        std: standard deviation for the normalisation of images, likewise.
        validation: fraction of the training images that is held out for validation; of text always
            a tenth.
        layout: axes of images in a .npz file, channels_last (N, H, W, C) or channels_first; if not
            given, the first, unless their shape says otherwise.
        context: tokens in a window of text.
        image_size: height and width of images from a folder, in pixels.
        workers: processes that read images from a folder.
        limit: the largest number of training images, or windows of text, to keep.
        test_limit: the same of the test data, for a quick look.
        root: folder of the data sets; relative paths in `data` begin there.
        download: download data that is absent.

    Lists become tuples, and numbers of numpy those of Python, so that
    `Config(**json.loads(text))` reads what config.json holds.

    Example:
        >>> Config(method="greedy", epochs=0).find_problems()
        ['epochs=0, but at least 1 is needed: raise it.']
    """

    model: str = "resnet20"
    init: str | None = None
    init_order: bool = False
    freeze: str | None = None
    data: str = "digits"
    method: str | Rule = "Rule()"
    phases: str | None = None
    modules: int | None = None
    cuts: tuple[int, ...] | None = None
    epochs: int = 20
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    lr_schedule: str = "cosine"
    warmup_epochs: int | None = None
    warmup_from: float | None = None
    milestones: tuple[int, ...] = ()
    lr_factor: float = 0.1
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    channels_last: bool = False
    fused: bool = False
    tf32: bool = False
    fast: bool = False
    recompute: bool | int | str = False
    offload: bool = False
    microbatches: int = 1
    weight_gradients: str = "once"
    on_nonfinite: str = "raise"
    atomic: bool | None = None
    replicas: int = 1
    timeout_s: float = 300.0
    augment: str | None = None
    padding: str | None = None
    crop_pad: int | None = None
    cutout: int = 16
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    validation: float = 0.1
    layout: str | None = None
    context: int = 128
    image_size: int = 224
    workers: int = 4
    limit: int | None = None
    test_limit: int | None = None
    root: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _as_plain(getattr(self, field.name)))

    def as_json(self) -> dict[str, Any]:
        """The fields with the method as text: what config.json holds.

        Example:
            >>> Config(**Config(method="greedy", cuts=(1, 3)).as_json()).cuts
            (1, 3)
        """
        from localprop.methods.names import format_method  # a rule stands for its text

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"method": format_method(self.method)}

    @property
    def warmup(self) -> int:
        """The epochs of warm-up: `warmup_epochs`, or its default."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        return min(10, self.epochs // 10) if self.lr_schedule in COSINES else 0

    @property
    def first_method(self) -> str | Rule:
        """The method that the run begins with."""
        return parse_phases(self.phases)[0].method if self.phases else self.method

    def find_problems(self) -> list[str]:
        """Find everything that is wrong with the values, one sentence each.

        Whether the data and the model exist shows only when they are built.

        Example:
            >>> len(Config(lr=-1.0, epochs=0).find_problems())
            2
        """
        found = [
            describe_mistyped(name, getattr(self, name), find_accepted_types()[name])
            for name in self._find_mistyped_fields()
        ]
        valid = self.with_valid_defaults()
        found += find_value_problems(valid)
        with collect_problems(found):
            find_device(valid.device)
        return found + _find_method_problems(valid)

    def with_valid_defaults(self) -> Config:
        """Copy the config with the defaults in place of values of a wrong type.

        The other values can then be checked as well.

        Example:
            >>> Config(lr="high").with_valid_defaults().lr
            0.1
        """
        defaults: dict[str, Any] = {
            name: getattr(Config, name) for name in self._find_mistyped_fields()
        }
        return replace(self, **defaults)

    def _find_mistyped_fields(self) -> list[str]:
        accepted = find_accepted_types()
        return [
            name
            for name, types in accepted.items()
            if not any(has_type(getattr(self, name), each) for each in types)
        ]


def _as_plain(value: Any) -> Any:
    """A list as a tuple, and a number of numpy as Python's own, which JSON takes."""
    if isinstance(value, list | tuple):
        return tuple(map(_as_plain, value))
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


# --- types ----------------------------------------------------------------------------------------


def find_accepted_types() -> dict[str, tuple[Any, ...]]:
    """The types that each field of `Config` accepts.

    Example:
        >>> find_accepted_types()["modules"]
        (<class 'int'>, <class 'NoneType'>)
    """
    # Whoever gives a rule has imported its module; --help does without it, and without torch.
    rule = getattr(sys.modules.get("localprop.rule.rule"), "Rule", object)
    hints = get_type_hints(Config, localns={"Rule": rule})
    return {field.name: list_alternatives(hints[field.name]) for field in fields(Config)}


# --- values ---------------------------------------------------------------------------------------


def _find_method_problems(config: Config) -> list[str]:
    from localprop.methods.parse import parse_rule  # imports torch, which --help does without

    found: list[str] = []
    with collect_problems(found):
        parse_rule(config.method)
    if config.phases is None:
        return found
    with collect_problems(found):
        found += find_cycle_problems(parse_phases(config.phases), config.epochs)
    if config.method != Config.method:
        found.append(
            f"method={config.method!r}, but phases name methods of their own: leave one of them "
            "out."
        )
    return found


def find_value_problems(config: Config) -> Iterator[str]:
    """Find everything that is wrong with values of the right types, one sentence each."""
    for name in ("epochs", "batch_size", "microbatches", "modules", "replicas"):
        value = getattr(config, name)
        if value is not None and value < 1:
            yield f"{name}={value}, but at least 1 is needed: raise it."
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        if value not in choices:
            yield f"{name}={value!r} is unknown: choose {' or '.join(choices)}."
    yield from _find_optimizer_problems(config)
    yield from _find_schedule_problems(config)
    yield from _find_cut_problems(config)
    if not 0 <= config.label_smoothing < 1:
        yield f"label_smoothing={config.label_smoothing} must lie in [0, 1): try 0.1."
    if not 0 <= config.seed < 2**63:
        yield f"seed={config.seed} must lie in 0..2**63-1: choose another."
    yield from find_timeout_problems(config.timeout_s)
    if config.microbatches > config.batch_size >= 1:
        yield (
            f"microbatches={config.microbatches}, but batch_size={config.batch_size}: "
            f"use {config.batch_size} micro-batches or fewer."
        )


def _find_optimizer_problems(config: Config) -> Iterator[str]:
    if not 0 < config.lr < math.inf:
        yield f"lr={config.lr} must be positive and finite: try 0.1."
    if not 0 <= config.momentum < 1:
        yield f"momentum={config.momentum} must lie in [0, 1): try 0.9."
    elif config.optimizer == "sgd":
        if config.nesterov and config.momentum == 0:
            yield "nesterov=True needs a momentum, but momentum=0: switch nesterov off, too."
    elif config.momentum != Config.momentum:
        yield (
            f"momentum={config.momentum} is for optimizer=sgd, but {config.optimizer} has none: "
            "leave it out."
        )
    if not 0 <= config.weight_decay < math.inf:
        yield f"weight_decay={config.weight_decay} must be 0 or more, and finite: try 1e-4."
    if config.clip_norm is not None and not 0 < config.clip_norm < math.inf:
        yield f"clip_norm={config.clip_norm} must be positive and finite: try 1, or leave it out."


def _find_schedule_problems(config: Config) -> Iterator[str]:
    if config.epochs >= 1 and not 0 <= config.warmup < config.epochs:
        yield (
            f"warmup_epochs={config.warmup}, but it must lie in 0..{config.epochs - 1} for "
            f"{config.epochs} epochs: try --warmup-epochs 0."
        )
    if config.warmup_from is not None and not 0 <= config.warmup_from <= config.lr:
        yield (
            f"warmup_from={config.warmup_from}, but it must lie in 0..lr, which is {config.lr}: "
            "lower it, or leave it out."
        )
    if config.lr_schedule == "multistep":
        yield from _find_milestone_problems(config)
    elif config.milestones:
        yield (
            f"milestones={config.milestones} are for lr_schedule=multistep, not "
            f"{config.lr_schedule}: leave them out."
        )
    if not 0 < config.lr_factor < math.inf:
        yield f"lr_factor={config.lr_factor} must be positive and finite: try 0.1."


def _find_milestone_problems(config: Config) -> Iterator[str]:
    steps = config.milestones
    increase = list(steps) == sorted({*steps})
    if not steps or not increase or steps[0] < 1 or steps[-1] >= config.epochs:
        yield (
            f"milestones={steps} must be epochs that increase, between 1 and {config.epochs - 1}: "
            "give one or more."
        )


def _find_cut_problems(config: Config) -> Iterator[str]:
    if config.cuts is None:
        return
    modules = len(config.cuts) + 1
    if config.modules is not None and config.modules != modules:
        yield (
            f"modules={config.modules}, but cuts={config.cuts} make {modules}: leave one of them "
            "out."
        )
    if list(config.cuts) != sorted({*config.cuts}) or any(cut < 0 for cut in config.cuts):
        yield f"cuts={config.cuts} must be numbers of layers, from 0, that increase: sort them."
