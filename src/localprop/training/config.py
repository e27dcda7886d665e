"""What a run is: a model, data, a method and how they are trained."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from localprop.errors import BadInput, check
from localprop.training.expression import rule_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from localprop.data import Dataset
    from localprop.learner import Learner

_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", types.NoneType: "None"}


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on. The defaults train on two CPU cores in half a minute.

    Attributes:
        model: resnet8 to resnet110, mlp, mlp:512,512 (hidden widths), timm:NAME or torchvision:NAME.
        data: digits, cifar10, cifar100, svhn, stl10, fashion_mnist, or a path that ends in .npz.
        method: the training rule as an expression, such as "backlink(layers=2)" or "greedy(aux=Head(convs=0))".
        modules: the number of local modules; one per layer if not given.
        epochs: passes over the training images; with the cosine schedule the last one has a learning rate of 0.
        batch_size: images per batch.
        lr: the highest learning rate.
        momentum: of stochastic gradient descent.
        nesterov: use Nesterov's momentum.
        weight_decay: on all parameters.
        lr_schedule: cosine (per epoch, after a warm-up) or constant.
        warmup_epochs: epochs of linear warm-up; if not given a tenth of the epochs, at most 10, and none if constant.
        seed: of initial weights, data order, augmentation and every random draw of a step.
        device: auto (the accelerator if there is one), cpu, or a name of torch's such as cuda:1.
        precision: fp32, or bf16 (autocast).
        recompute: compute activations again before a backward instead of keeping them.
        microbatches: parts that a batch is run in; gradients accumulate.
        replicas: under torchrun, pipelines of ranks, each with its share of every batch (and so many micro-batches).
        timeout_s: under torchrun, seconds to wait for another rank before it is taken for lost.
        augment: none, crop, flip or "crop,flip"; if not given, what is usual for the data.
        limit: keep that many training images at most.
        root: folder of the data sets.
        download: fetch data that is absent.

    Example:
        >>> Config(method="greedy", epochs=0).problems()
        ['epochs=0, but at least 1 is needed: raise it.']
    """

    model: str = "resnet20"
    data: str = "digits"
    method: str = "Rule()"
    modules: int | None = None
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    lr_schedule: str = "cosine"
    warmup_epochs: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    recompute: bool = False
    microbatches: int = 1
    replicas: int = 1
    timeout_s: float = 300.0
    augment: str | None = None
    limit: int | None = None
    root: str | None = None
    download: bool = False

    @property
    def warmup(self) -> int:
        """Epochs of warm-up, as given or by default."""
        usual = min(10, self.epochs // 10) if self.lr_schedule == "cosine" else 0
        return usual if self.warmup_epochs is None else self.warmup_epochs

    def problems(self) -> list[str]:
        """All that is wrong with the values, one sentence each; whether data and model exist is seen when they are built.

        Example:
            >>> len(Config(lr=-1.0, epochs=0).problems())
            2
        """
        found = [_mistyped(name, getattr(self, name)) for name in self._mistyped()]
        sound = self.sound()
        found += [*_range_problems(sound), *_choice_problems(sound)]
        with noting(found):
            device_of(sound.device)
        with noting(found):
            rule_of(sound.method)
        return found

    def sound(self) -> Config:
        """The same config with defaults for the values of a wrong type, so that the others can be looked at.

        Example:
            >>> Config(lr="high").sound().lr
            0.1
        """
        usual: dict[str, Any] = {name: getattr(Config, name) for name in self._mistyped()}
        return replace(self, **usual)

    def _mistyped(self) -> list[str]:
        types_of = accepted_types()
        return [name for name in types_of if not _is_of(getattr(self, name), types_of[name])]


def accepted_types() -> dict[str, tuple[type, ...]]:
    """The types that each field of :class:`Config` takes.

    Example:
        >>> accepted_types()["modules"]
        (<class 'int'>, <class 'NoneType'>)
    """
    hints = get_type_hints(Config)
    return {field.name: get_args(hints[field.name]) or (hints[field.name],) for field in fields(Config)}


def _is_of(value: object, kinds: tuple[type, ...]) -> bool:
    return type(value) in kinds or (float in kinds and type(value) is int)


def _mistyped(name: str, value: object) -> str:
    wanted = " or ".join(_WORDS[kind] for kind in accepted_types()[name])
    return f"{name}={value!r} is a {type(value).__name__}, but must be {wanted}: correct it."


def _range_problems(config: Config) -> Iterator[str]:
    for name in ("epochs", "batch_size", "microbatches", "modules", "replicas"):
        value = getattr(config, name)
        if value is not None and value < 1:
            yield f"{name}={value}, but at least 1 is needed: raise it."
    if not 0 < config.lr < math.inf:
        yield f"lr={config.lr} must be positive and finite: try 0.1."
    if not 0 <= config.momentum < 1:
        yield f"momentum={config.momentum} must lie in [0, 1): try 0.9."
    elif config.nesterov and config.momentum == 0:
        yield "nesterov=True needs a momentum, but momentum=0: switch nesterov off too."
    if not 0 <= config.weight_decay < math.inf:
        yield f"weight_decay={config.weight_decay} must be 0 or more, and finite: try 1e-4."
    if not 0 <= config.seed < 2**63:
        yield f"seed={config.seed} must lie in 0..2**63-1: choose another."
    if not 0 < config.timeout_s < math.inf:
        yield f"timeout_s={config.timeout_s} must be positive and finite: try 300."
    if config.microbatches > config.batch_size >= 1:
        yield f"microbatches={config.microbatches} of a batch of {config.batch_size}: use {config.batch_size} or fewer."
    yield from _schedule_problems(config)


def _schedule_problems(config: Config) -> Iterator[str]:
    if config.lr_schedule == "cosine" and config.epochs == 1:
        yield "epochs=1 of a cosine schedule is its end, a learning rate of 0: use 2 or more, or lr_schedule=constant."
    if config.epochs >= 1 and not 0 <= config.warmup < config.epochs:
        yield f"warmup_epochs={config.warmup}, but it must lie in 0..{config.epochs - 1} for {config.epochs} epochs."


def _choice_problems(config: Config) -> Iterator[str]:
    for name, choices in (("lr_schedule", ("cosine", "constant")), ("precision", ("fp32", "bf16"))):
        value = getattr(config, name)
        if value not in choices:
            yield f"{name}={value!r} is unknown: choose {' or '.join(choices)}."


def device_of(name: str) -> torch.device:
    """The device of a name, "auto" being the accelerator if there is one and else the CPU.

    Raises:
        BadInput: no device of torch's, or one that this machine lacks.

    Example:
        >>> device_of("cpu")
        device(type='cpu')
    """
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    own = accelerator and name in ("auto", accelerator.type) and "LOCAL_RANK" in os.environ
    if own and accelerator:  # torchrun's: a device for each rank of a machine
        return torch.device(accelerator.type, int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count())
    if name == "auto":
        return accelerator or torch.device("cpu")
    there = "cpu" + (f" and {accelerator.type} (0..{torch.accelerator.device_count() - 1})" if accelerator else "")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"device={name!r} is unknown to torch: choose auto; this machine has {there}.") from error
    if device.type == "cpu" and device.index:
        raise BadInput(f"device={name!r} is not available: there is one cpu; this machine has {there}.")
    exists = accelerator and device.type == accelerator.type and (device.index or 0) < torch.accelerator.device_count()
    if not exists and device.type != "cpu":
        raise BadInput(f"device={name!r} is not available: choose auto; this machine has {there}.")
    return device


def load_data(config: Config) -> Dataset:
    """The data set of a config.

    Raises:
        BadInput: as :func:`localprop.data.load`.

    Example:
        >>> load_data(Config(limit=100)).name
        'digits'
    """
    from localprop.data import load

    return load(config.data, root=config.root, download=config.download, limit=config.limit, augment=config.augment)


def build(config: Config, dataset: Dataset) -> Learner:
    """The learner of a config: a new model, its optimizers and rule, for batches of the data set.

    The initial weights depend on the seed alone; the caller's random state is left as it was.

    Raises:
        BadInput: all problems of the values and the model, or what the partition or the rule refuse.

    Example:
        >>> config = Config(model="resnet8", epochs=2)
        >>> len(build(config, load_data(config)).partition.modules)
        4
    """
    try:
        return _built(config, dataset)
    except RuntimeError as error:  # torch's own, as of an impossible size or memory that is not there
        raise BadInput(f"This run cannot be built ({str(error).splitlines()[0]}): choose smaller sizes.") from error


def _built(config: Config, dataset: Dataset) -> Learner:
    import torch

    from localprop.learner import Learner
    from localprop.network import Partition, layers_of
    from localprop.ranks.pipeline import Ranks

    problems = config.problems() or _batch_problems(config, len(dataset.train))
    model: nn.Module | None = None
    with noting(problems):
        model = _new_model(config.sound(), dataset)
    check(problems)
    assert model is not None
    device = device_of(config.device)
    count = min(config.batch_size, len(dataset.train))
    sample = torch.zeros(count, *dataset.shape), torch.zeros(count, dtype=torch.int64)
    layers = layers_of(model.to(device), sample)
    return Learner(
        model,
        rule_of(config.method),
        partition=Partition.uniform(layers, config.modules or len(layers)),
        optimizer=optimizer_of(config),
        sample=sample,
        recompute=config.recompute,
        microbatches=config.microbatches,
        precision=config.precision,
        seed=config.seed,
        ranks=Ranks(replicas=config.replicas, timeout_s=config.timeout_s),
    )


def optimizer_of(config: Config) -> Callable[[list[nn.Parameter]], Optimizer]:
    """A factory of the optimizer of a config: stochastic gradient descent."""
    from torch.optim import SGD

    return lambda parameters: SGD(
        parameters, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay
    )


def prepared(config: Config) -> tuple[Dataset, Learner]:
    """The data set and the learner of a config.

    Raises:
        BadInput: the problems of values, data and model together.

    Example:
        >>> dataset, learner = prepared(Config(model="mlp", epochs=2))
    """
    problems = config.problems()
    with noting(problems):
        dataset = load_data(config.sound())
        with noting(problems):
            learner = build(config, dataset)
    check(dict.fromkeys(problems))  # the values' problems are found again when the learner is built
    return dataset, learner


def _new_model(config: Config, dataset: Dataset) -> nn.Module:
    import torch

    from localprop.models import create_model

    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds accelerators too: weights are drawn on the CPU, alike for every device.
        torch.default_generator.manual_seed(config.seed)
        return create_model(config.model, dataset.num_classes, dataset.shape)


def _batch_problems(config: Config, images: int) -> list[str]:
    left = images % config.batch_size
    last = left if left > 1 else config.batch_size
    if config.microbatches * config.replicas <= last:
        return []
    parts = f"microbatches={config.microbatches}" + (f" in replicas={config.replicas}" if config.replicas > 1 else "")
    return [
        f"The last batch of an epoch has {last} of the {images} training images, too few for {parts}: use fewer, or "
        "another batch_size."
    ]


@contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Go on after bad input, whose problems are added to the others.

    Example:
        >>> problems = []
        >>> with noting(problems):
        ...     raise BadInput("one")
        >>> problems
        ['one']
    """
    try:
        yield
    except BadInput as error:
        problems += error.problems
