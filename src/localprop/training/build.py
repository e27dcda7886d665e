"""Build what a config describes: its data set, its model and its learner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn

from localprop.data import Dataset, LoadingOptions, load
from localprop.errors import BadInput, as_bad_sizes, check, collect_problems
from localprop.learner import Learner
from localprop.methods.parse import parse_rule
from localprop.models import create_model, takes_images
from localprop.models.freeze import freeze
from localprop.models.weights import load_weights, read_weights
from localprop.network.find_layers import layers_of
from localprop.network.partition import Partition
from localprop.ranks.pipeline import Ranks
from localprop.tasks.classification import Classification
from localprop.training.config import Config
from localprop.training.device import find_device
from localprop.training.optimizers import make_optimizer_factory
from localprop.training.phase_schedule import PhaseSchedule

OnNote = Callable[[str], object]


def ignore(note: str) -> None:
    """Tell nobody."""


def load_data(config: Config) -> Dataset:
    """Load the data set of a config.

    Raises:
        BadInput: as `localprop.data.load`.

    Example:
        >>> load_data(Config(limit=100)).name
        'digits'
    """
    return load(config.data, **vars(options_of(config)))


def options_of(config: Config) -> LoadingOptions:
    """The options that a config's data set is loaded with.

    Example:
        >>> options_of(Config(limit=100)).limit
        100
    """
    return LoadingOptions(
        **{field.name: getattr(config, field.name) for field in fields(LoadingOptions)}
    )


def build(
    config: Config, dataset: Dataset, *, weights: bool = True, on_note: OnNote = ignore
) -> Learner:
    """Build the learner of a config: a new model, a rule and optimizers for the data set's batches.

    A run in phases begins with the learner of the first phase. The initial weights depend on the
    seed and on `init` alone. The caller's random state does not change.

    Args:
        config: the run.
        dataset: the data set.
        weights: whether to begin with the weights of `init`, or those of a pretrained model; a run
            that goes on has its own.
        on_note: called with what `init` has changed.

    Raises:
        BadInput: all problems of the values and the model, or those of the partition or the rule.

    Example:
        >>> config = Config(model="resnet8", epochs=2)
        >>> len(build(config, load_data(config)).partition.modules)
        4
    """
    with as_bad_sizes("This run"):
        model = _build_model(config, dataset, weights, on_note)
        return _build_learner(config, dataset, model, _partition_model(config, dataset, model))


def build_phase_schedule(config: Config, dataset: Dataset, first: Learner) -> PhaseSchedule:
    """Build the schedule of a run's phases, with a learner for each further method.

    Args:
        config: the run.
        dataset: the data set.
        first: the learner of `build`. The further learners share its network and partition.

    Raises:
        BadInput: the phases do not fit the network, or its rules.

    Example:
        >>> build_phase_schedule(config, dataset, learner).others
        {}
    """

    def build_other(other: Config) -> Learner:
        return _build_learner(other, dataset, first.model, first.partition)

    with as_bad_sizes("This run"):
        return PhaseSchedule(first, config, build_other)


def prepare(
    config: Config,
    load_dataset: Callable[[Config], Dataset] = load_data,
    *,
    weights: bool = True,
    on_note: OnNote = ignore,
) -> tuple[Dataset, Learner]:
    """Load the data set of a config and build its learner.

    Args:
        config: the run.
        load_dataset: loads the data set of a config.
        weights: as for `build`.
        on_note: as for `build`.

    Raises:
        BadInput: the problems of values, data and model together.

    Example:
        >>> dataset, learner = prepare(Config(model="mlp", epochs=2))
    """
    problems = config.find_problems()
    with collect_problems(problems):
        dataset = load_dataset(config.with_valid_defaults())
        with collect_problems(problems):
            learner = build(config, dataset, weights=weights, on_note=on_note)
    check(dict.fromkeys(problems))  # build finds the problems of the values a second time
    return dataset, learner


def _build_model(config: Config, dataset: Dataset, weights: bool, on_note: OnNote) -> nn.Module:
    """Build the model, or raise `BadInput` with the problems of values, data and model at once."""
    problems = config.find_problems() or [
        *_find_batch_problems(config, dataset),
        *dataset.find_problems(augment=True),
    ]
    model: nn.Module | None = None
    with collect_problems(problems):
        model = _create_seeded_model(config.with_valid_defaults(), dataset, weights, on_note)
    check(problems)
    assert model is not None
    return model


def _create_seeded_model(
    config: Config, dataset: Dataset, weights: bool, on_note: OnNote
) -> nn.Module:
    if len(dataset.shape) == 1 and takes_images(config.model):
        raise BadInput(f"{config.model} takes images, not tokens: use transformer.")
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds accelerators too. Weights are drawn on the CPU, so that
        # they are the same for every device.
        # A seed out of range is refused with all other problems.
        torch.default_generator.manual_seed(config.seed % 2**63)
        sizes = dataset.num_classes, dataset.shape
        model = create_model(config.model, *sizes, pretrained=weights)
    problems: list[str] = []
    with collect_problems(problems):
        if weights and config.init is not None:
            on_note(_load_initial_weights(model, config.init, config.init_order))
    with collect_problems(problems):
        if config.freeze is not None:
            freeze(model, config.freeze)
    check(problems)
    return model


def _load_initial_weights(model: nn.Module, path: str, in_order: bool) -> str:
    if in_order and path.endswith(".safetensors"):
        raise BadInput(
            f"{path} has no order, because safetensors sorts its tensors by name: leave "
            "--init-order out, or give a state_dict of torch.save."
        )
    return load_weights(model, read_weights(path), in_order=in_order)


def _make_sample(config: Config, dataset: Dataset) -> tuple[Tensor, Tensor]:
    return dataset.make_zero_batch(min(config.batch_size, len(dataset.train)))


def _partition_model(config: Config, dataset: Dataset, model: nn.Module) -> Partition:
    model.to(find_device(config.device))
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    layers = layers_of(model, _make_sample(config, dataset))
    if config.cuts is not None:
        return Partition.at(layers, config.cuts)
    return Partition.uniform(layers, config.modules or len(layers))


def _build_learner(
    config: Config, dataset: Dataset, model: nn.Module, partition: Partition
) -> Learner:
    return Learner(
        model,
        parse_rule(config.first_method),
        partition=partition,
        optimizer=make_optimizer_factory(config),
        sample=_make_sample(config, dataset),
        task=Classification(config.label_smoothing, dim=-1),  # (N, T, C) for text
        recompute=config.recompute,
        offload=config.offload,
        microbatches=config.microbatches,
        weight_gradients=config.weight_gradients,
        on_nonfinite=config.on_nonfinite,
        atomic=config.atomic,
        precision=config.precision,
        fast=config.fast,
        seed=config.seed,
        normalization=dataset.normalization,
        ranks=Ranks(replicas=config.replicas, timeout_s=config.timeout_s),
    )


def _find_batch_problems(config: Config, dataset: Dataset) -> list[str]:
    """Every micro-batch of every replica needs a sample, also in the last batch of an epoch."""
    samples = len(dataset.train)
    remainder = samples % config.batch_size
    # The trainer drops a last batch of one sample.
    last = remainder if remainder > 1 else config.batch_size
    if config.microbatches * config.replicas <= last:
        return []
    split = f"microbatches={config.microbatches}"
    if config.replicas > 1:
        split += f" in replicas={config.replicas}"
    return [
        f"The last batch of an epoch has {last} of the {samples} training {dataset.unit}, too few "
        f"for {split}: use fewer, or another batch_size."
    ]
