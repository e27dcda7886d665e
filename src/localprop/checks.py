"""What a learner is given: checked before anything is built, every problem at once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from localprop.engine.isolation import find_leaks
from localprop.errors import BadInput, check
from localprop.network.find_layers import layers_of, look_again
from localprop.network.layers import Layers
from localprop.network.own_loss import check_against_own_loss
from localprop.network.partition import Partition
from localprop.network.snapshot import Snapshot
from localprop.rule.builders import make_credit_table
from localprop.rule.local_loss import LossInputs
from localprop.rule.losses import BuiltTask
from localprop.rule.positions import list_layers_for_heads
from localprop.rule.rule import Rule
from localprop.schedule import process_wide
from localprop.schedule.check_heads import check_heads
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch, find_shapes, unwrap, use_plain_dicts
from localprop.tasks.custom import task as make_task_of
from localprop.tasks.find import find_task
from localprop.tasks.task import Task, describe


def make_partition(
    model: nn.Module,
    rule: Rule,
    sample: Any,
    task: Task,
    batch_dims: Any,
    cuts: int | Partition | None,
) -> Partition:
    """The given partition, or one of so many modules (`choose_partition`).

    Args:
        model: the primary network.
        rule: says whether there are heads.
        sample: a batch.
        task: how it enters the model.
        batch_dims: where it holds its samples.
        cuts: the number of modules, or the partition.

    Raises:
        BadInput: the partition names parameters that the model does not have, or the model cannot
            be cut into so many modules.
    """
    assert cuts is not None
    if not isinstance(cuts, Partition):
        layers = layers_of(model, sample, task=task, batch_dims=batch_dims)
        return choose_partition(layers, rule, task, cuts)
    known = {name for name, _ in model.named_parameters()}
    named = {name for layer in cuts.layers.parameters for name in layer}
    strange = sorted(named - known)
    if strange:
        raise BadInput(
            f"The partition is of another model: this one has no parameter {strange[0]!r}. Call "
            "layers_of on this model."
        )
    return cuts


def choose_partition(layers: Layers, rule: Rule, task: Task, modules: int) -> Partition:
    """A uniform partition, whose modules end where a rule's heads can be.

    Layers whose features have no positions in common with the outputs, such as the encoder of an
    encoder-decoder, can hold no head, so they join the next that can. Where something goes around a
    cut, as in a dense block, a head sees a part of what the next module gets; so modules end
    elsewhere, unless one of them had twice its share of the layers by that.

    Raises:
        BadInput: there are fewer layers than modules.
    """
    partition = Partition.uniform(layers, modules)
    if len(make_credit_table(rule, partition).rows) == 1:
        return partition
    ends = {*list_layers_for_heads(layers, task), len(layers) - 1}
    clean = {end for end in ends if not layers.goes_around(end)}
    if len(clean) >= modules:
        coarse = Partition.uniform(layers, modules, ends=clean)
        if max(map(len, coarse.modules)) * modules <= 2 * len(layers):
            return coarse
    # With too few ends, the heads say what they lack.
    return Partition.uniform(layers, modules, ends=ends) if len(ends) >= modules else partition


class BatchCheck:
    """Lets batches pass that fit the sample, while the model trains what it did at first.

    Args:
        model: the network.
        sample: a batch.
        wiring: the segments and losses.
        batch_dims: where a batch holds its samples.
    """

    def __init__(self, model: nn.Module, sample: Batch, wiring: Wiring, batch_dims: Any) -> None:
        self._sample, self._wiring = sample, wiring
        self._dims = sample.spread_dims() if batch_dims is ... else batch_dims
        self._device_of = next(model.parameters())
        trained = {"": model, "heads.": wiring.heads, "encoders.": wiring.encoders}
        self._snapshot = Snapshot(trained)
        self._task_loss = wiring.task_loss
        self._checked: set[object] = set()
        self._known: dict[object, tuple[Batch, torch.Size]] = {}

    def __call__(self, data: Any) -> Batch:
        """The batch on the model's device.

        Raises:
            BadInput: something is wrong with it.
        """
        check(
            f"{change} since the Learner was made: call learner.rebuild(), or make a new Learner."
            for change in self._snapshot.find_changes()
        )
        data = use_plain_dicts(unwrap(data))
        shapes = find_shapes(data)
        if shapes not in self._known:
            try:
                self._known[shapes] = self._look_at(data)
            finally:
                # Within a host's autocast, it has kept fakes of cast weights for the forward.
                torch.clear_autocast_cache()
        like, outputs = self._known[shapes]
        batch = like.take(data)
        inputs = LossInputs(batch.inputs, batch.targets, batch=batch.data)
        check(self._task_loss.find_problems(inputs, outputs))
        return batch.to(self._device_of.device)

    def _look_at(self, data: Any) -> tuple[Batch, torch.Size]:
        """Look at data of new shapes on fakes: where it has its samples, and the output's shape."""
        wiring, batch = self._wiring, self._find_samples(data)
        check(_find_shape_problems(batch, self._sample))
        # Losses on one sample differ from others: BatchNorm has nothing to compare it with.
        shape = batch.signature, batch.samples == 1
        if shape not in self._checked:
            check_heads(wiring, batch)
            if wiring.odd_ends:  # others are right by the way in which they were found
                check(find_leaks(wiring, batch))
            self._checked.add(shape)
        layers = look_again(wiring.layers, wiring.task.forward, batch)
        outputs = layers.shape_for(layers.output_shape, layers.output_growth, batch.samples)
        return batch.take(None), outputs

    def _find_samples(self, data: Any) -> Batch:
        try:
            return Batch.of(data, self._wiring.task.targets(data), self._dims)
        except BadInput as error:
            raise BadInput(
                f"A batch is {describe(data)}, but the sample was {describe(self._sample.data)}."
            ) from error


def _find_shape_problems(batch: Batch, sample: Batch) -> Iterator[str]:
    """What in a batch differs from the sample that must not."""
    tensors, like = batch.tensors, sample.tensors
    if len(tensors) != len(like):
        yield f"A batch is {describe(batch.data)}, but the sample was {describe(sample.data)}."
        return
    if not batch.samples:
        yield "The batch is empty."
    names = {sample.input: "Inputs", sample.target: "Targets"}
    for i, (tensor, other) in enumerate(zip(tensors, like, strict=True)):
        name, dim = names.get(i, f"Tensor {i} of the batch"), batch.dims[i]
        sizes = ["N" if d == sample.dims[i] else str(n) for d, n in enumerate(other.shape)]
        wanted, shape = f"({', '.join(sizes)})", tuple(tensor.shape)
        if tensor.ndim != other.ndim:
            yield f"{name} have shape {shape}, but the sample was {wanted}."
        elif dim is not None and tensor.shape[dim] != batch.samples:
            yield (
                f"{batch.samples} samples, but {name.lower()} of shape {shape}: they must be "
                f"{wanted}, one per sample."
            )
        if tensor.dtype != other.dtype:
            yield f"{name} are {tensor.dtype}, but the sample was {other.dtype}: convert one."


def check_surroundings() -> None:
    """Check that tensors can get gradients here.

    Raises:
        BadInput: not within torch.inference_mode(), nor in a fork of a process that has trained.
            torch.no_grad() is no obstacle.
    """
    if process_wide.is_fork_of_trained:
        raise BadInput(
            "This process was forked from one that has trained, and torch's threads do not "
            "outlive a fork: start processes by multiprocessing.get_context('spawn'), or before "
            "the first step."
        )
    if torch.is_inference_mode_enabled():
        raise BadInput(
            "This is inside torch.inference_mode(), where nothing can be trained: call it outside, "
            "or use torch.no_grad() there."
        )


def add_targets(sample: Any) -> Any:
    """A sample of inputs alone, with the class 0 for each, which stands for any."""
    if not isinstance(sample, Tensor) or not sample.ndim:
        return sample
    return sample, torch.zeros(len(sample), dtype=torch.long)


def resolve_task(task: Any, model: nn.Module, sample: Any, batch_dims: Any) -> Task:
    """What a user gives as the task, as a `Task`.

    Args:
        task: a task; a loss of torch; a function (output, targets); a builder of a `LocalLoss`; or
            None for the usual task of the model and the sample.
        model: the network.
        sample: a batch.
        batch_dims: where it holds its samples.

    Raises:
        BadInput: it is none of these, or there is no usual task, or the model itself computes
            another loss than the usual.
    """
    if task is None:
        found = find_task(model, sample)
        batch = Batch.of(sample, found.targets(sample), batch_dims)
        check_against_own_loss(found, model, batch)
        return found
    if isinstance(task, Task):
        return task
    if is_builder(task):
        return BuiltTask(task)
    return make_task_of(loss=task)


def is_builder(task: Any) -> bool:
    """Whether something builds a local loss: a function of an attach point alone."""
    if isinstance(task, nn.Module) or not callable(task):
        return False
    try:
        parameters = inspect.signature(task).parameters.values()
    except ValueError:  # a function of C++
        return False
    return sum(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters) == 1
