"""What a run is: a model, data, a method and how they are trained."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from localprop.errors import BadInput, check
from localprop.training.device import device_of as device_of
from localprop.training.expression import rule_of
from localprop.training.optimizers import optimizer_of
from localprop.training.phases import Course, lap_problems, phases_of
from localprop.training.values import COSINES, value_problems

if TYPE_CHECKING:
    from torch import Tensor, nn

    from localprop.data import Dataset, Options
    from localprop.learner import Learner
    from localprop.network import Partition

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    types.NoneType: "None",
    tuple[int, ...]: "whole numbers with commas",
    tuple[float, ...]: "numbers with commas",
}


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on. The defaults train on two CPU cores in half a minute.

    Attributes:
        model: a name of localprop.models such as resnet32, mlp:512,512 (hidden widths) or transformer:width=64,blocks=2 (for
            text), timm:NAME or torchvision:NAME.
        data: digits, cifar10, cifar100, svhn, svhn_extra, stl10, mnist, fashion_mnist, kmnist, a path that ends in .npz, or
            folder:PATH; for language models text (which ships with Python) or a path that ends in .txt.
        method: the training rule as an expression, such as "backlink(layers=2)" or "greedy(aux=Head(convs=0))".
        phases: instead of the method, several in turn, such as "greedy() for 4; end_to_end() for 1", or one module after the
            other, "greedy() for 50 on 0; greedy() for 60 on 1"; begun anew until the epochs are over.
        modules: the number of local modules; one per layer if not given.
        cuts: instead of modules, the number of the last layer of each module but the final one, from 0.
        epochs: passes over the training data; with the cosine schedule the last one has a learning rate of 0.
        batch_size: images, or windows of text, per batch.
        optimizer: sgd, adam or adamw.
        lr: the highest learning rate.
        momentum: of sgd.
        nesterov: use Nesterov's momentum in sgd.
        weight_decay: on all parameters.
        clip_norm: the largest norm of the gradient of each segment, and of each auxiliary network; not clipped if not given.
        label_smoothing: of the task's loss, the last module's.
        lr_schedule: cosine (per epoch, after a warm-up), cosine_above_zero (an epoch later, so that the first has lr and the
            last more than 0), multistep or constant.
        warmup_epochs: epochs of linear warm-up; if not given a tenth of the epochs, at most 10, and none if there is no cosine.
        milestones: of multistep, the epochs after which the learning rate is multiplied by lr_factor.
        lr_factor: of multistep.
        seed: of initial weights, data order, augmentation and every random draw of a step.
        device: auto (the accelerator if there is one), cpu, or a name of torch's such as cuda:1.
        precision: fp32, or bf16 (autocast).
        recompute: compute activations again before a backward instead of keeping them.
        microbatches: parts that a batch is run in; gradients accumulate.
        replicas: under torchrun, pipelines of ranks, each with its share of every batch (and so many micro-batches).
        timeout_s: under torchrun, seconds to wait for another rank before it is taken for lost.
        augment: none, or several of crop, flip, cutout and random_resized_crop (folders only), as in "crop,flip"; if not given,
            what is usual for the data.
        padding: of crop, reflect or zeros; if not given, what is usual for the data.
        crop_pad: of crop, pixels on each side; if not given, 4, or what is usual for the data.
        cutout: side of the square that is cut out, in pixels.
        mean: to normalise images by, one number per channel or one for all; if not given, what is usual for the data.
        std: likewise.
        validation: share of the training images that is held out to validate on; of text always a tenth.
        context: tokens in a window of text.
        image_size: height and width of images from a folder, in pixels.
        workers: processes that read images from a folder.
        limit: keep that many training images, or windows of text, at most.
        root: folder of the data sets; where a path in `data` begins, too, if it is no absolute one.
        download: fetch data that is absent.

    Example:
        >>> Config(method="greedy", epochs=0).problems()
        ['epochs=0, but at least 1 is needed: raise it.']
    """

    model: str = "resnet20"
    data: str = "digits"
    method: str = "Rule()"
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
    milestones: tuple[int, ...] = ()
    lr_factor: float = 0.1
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    recompute: bool = False
    microbatches: int = 1
    replicas: int = 1
    timeout_s: float = 300.0
    augment: str | None = None
    padding: str | None = None
    crop_pad: int | None = None
    cutout: int = 16
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    validation: float = 0.1
    context: int = 128
    image_size: int = 224
    workers: int = 4
    limit: int | None = None
    root: str | None = None
    download: bool = False

    @property
    def warmup(self) -> int:
        """Epochs of warm-up, as given or by default."""
        usual = min(10, self.epochs // 10) if self.lr_schedule in COSINES else 0
        return usual if self.warmup_epochs is None else self.warmup_epochs

    def problems(self) -> list[str]:
        """All that is wrong with the values, one sentence each; whether data and model exist is seen when they are built.

        Example:
            >>> len(Config(lr=-1.0, epochs=0).problems())
            2
        """
        found = [_mistyped(name, getattr(self, name)) for name in self._mistyped()]
        sound = self.sound()
        found += value_problems(sound)
        with noting(found):
            device_of(sound.device)
        with noting(found):
            rule_of(sound.method)
        if sound.phases is not None:
            with noting(found):
                found += lap_problems(phases_of(sound.phases), sound.epochs)
            if sound.method != Config.method:
                found.append(
                    f"method={sound.method!r}, but there are phases, which name their own: leave one of them out."
                )
        return found

    @property
    def first_method(self) -> str:
        """The method that the run begins with."""
        return phases_of(self.phases)[0].method if self.phases else self.method

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


def accepted_types() -> dict[str, tuple[Any, ...]]:
    """The types that each field of :class:`Config` takes.

    Example:
        >>> accepted_types()["modules"]
        (<class 'int'>, <class 'NoneType'>)
    """
    hints = get_type_hints(Config)
    return {field.name: _alternatives(hints[field.name]) for field in fields(Config)}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is_of(value: object, kinds: tuple[Any, ...]) -> bool:
    for kind in kinds:
        if isinstance(kind, types.GenericAlias):  # tuple[int, ...]
            if isinstance(value, tuple) and all(_is_of(item, get_args(kind)[:1]) for item in value):
                return True
        elif type(value) is kind or (kind is float and type(value) is int):
            return True
    return False


def _mistyped(name: str, value: object) -> str:
    wanted = " or ".join(_WORDS[kind] for kind in accepted_types()[name])
    return f"{name}={value!r} is a {type(value).__name__}, but must be {wanted}: correct it."


def load_data(config: Config) -> Dataset:
    """The data set of a config.

    Raises:
        BadInput: as :func:`localprop.data.load`.

    Example:
        >>> load_data(Config(limit=100)).name
        'digits'
    """
    from localprop.data import load

    return load(config.data, **vars(options_of(config)))


def options_of(config: Config) -> Options:
    """What a config's data are loaded with.

    Example:
        >>> options_of(Config(limit=100)).limit
        100
    """
    from localprop.data import Options

    return Options(**{field.name: getattr(config, field.name) for field in fields(Options)})


def build(config: Config, dataset: Dataset) -> Learner:
    """The learner of a config: a new model, its optimizers and rule, for batches of the data set. Of a run in phases it is the
    first one's.

    The initial weights depend on the seed alone; the caller's random state is left as it was.

    Raises:
        BadInput: all problems of the values and the model, or what the partition or the rule refuse.

    Example:
        >>> config = Config(model="resnet8", epochs=2)
        >>> len(build(config, load_data(config)).partition.modules)
        4
    """
    with _sized():
        model = _checked_model(config, dataset)
        return _learner(config, dataset, model, _cut(config, dataset, model))


def course_of(config: Config, dataset: Dataset, first: Learner) -> Course:
    """Who learns in which epoch of a run: the learner of :func:`build` and, in phases of other methods, others like it.

    Raises:
        BadInput: phases that the network or its rules refuse.

    Example:
        >>> course_of(config, dataset, learner).others
        {}
    """
    with _sized():
        return Course(first, config, lambda other: _learner(other, dataset, first.model, first.partition))


@contextmanager
def _sized() -> Iterator[None]:
    """Torch's own refusals, as of an impossible size or memory that is not there, are bad input."""
    try:
        yield
    except RuntimeError as error:
        raise BadInput(f"This run cannot be built ({str(error).splitlines()[0]}): choose smaller sizes.") from error


def _checked_model(config: Config, dataset: Dataset) -> nn.Module:
    problems = config.problems() or [*_batch_problems(config, dataset), *dataset.problems(augment=True)]
    model: nn.Module | None = None
    with noting(problems):
        model = _new_model(config.sound(), dataset)
    check(problems)
    assert model is not None
    return model


def _sample(config: Config, dataset: Dataset) -> tuple[Tensor, Tensor]:
    return dataset.sample(min(config.batch_size, len(dataset.train)))


def _cut(config: Config, dataset: Dataset, model: nn.Module) -> Partition:
    from localprop.network import Partition, layers_of

    layers = layers_of(model.to(device_of(config.device)), _sample(config, dataset))
    if config.cuts is not None:
        return Partition.at(layers, config.cuts)
    return Partition.uniform(layers, config.modules or len(layers))


def _learner(config: Config, dataset: Dataset, model: nn.Module, partition: Partition) -> Learner:
    from localprop.learner import Learner
    from localprop.ranks.pipeline import Ranks
    from localprop.rule.auxiliary import Normalised
    from localprop.rule.losses import CrossEntropy

    return Learner(
        model,
        rule_of(config.first_method),
        partition=partition,
        optimizer=optimizer_of(config),
        sample=_sample(config, dataset),
        task=CrossEntropy(config.label_smoothing),
        recompute=config.recompute,
        microbatches=config.microbatches,
        precision=config.precision,
        seed=config.seed,
        normalised=Normalised(*dataset.moments) if dataset.moments else None,
        ranks=Ranks(replicas=config.replicas, timeout_s=config.timeout_s),
    )


def prepared(config: Config, load: Callable[[Config], Dataset] = load_data) -> tuple[Dataset, Learner]:
    """The data set and the learner of a config.

    Args:
        config: the run.
        load: makes the data set of a config.

    Raises:
        BadInput: the problems of values, data and model together.

    Example:
        >>> dataset, learner = prepared(Config(model="mlp", epochs=2))
    """
    problems = config.problems()
    with noting(problems):
        dataset = load(config.sound())
        with noting(problems):
            learner = build(config, dataset)
    check(dict.fromkeys(problems))  # the values' problems are found again when the learner is built
    return dataset, learner


def _new_model(config: Config, dataset: Dataset) -> nn.Module:
    import torch

    from localprop.models import create_model, takes_tokens

    if len(dataset.shape) == 1 and not takes_tokens(config.model):
        raise BadInput(f"{config.model} takes images, not tokens: use transformer.")
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds accelerators too: weights are drawn on the CPU, alike for every device.
        torch.default_generator.manual_seed(config.seed)
        return create_model(config.model, dataset.num_classes, dataset.shape)


def _batch_problems(config: Config, dataset: Dataset) -> list[str]:
    samples = len(dataset.train)
    left = samples % config.batch_size
    last = left if left > 1 else config.batch_size
    if config.microbatches * config.replicas <= last:
        return []
    parts = f"microbatches={config.microbatches}" + (f" in replicas={config.replicas}" if config.replicas > 1 else "")
    return [
        f"The last batch of an epoch has {last} of the {samples} training {dataset.unit}, too few for {parts}: use fewer, or "
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
