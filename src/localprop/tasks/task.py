"""What a task is, and the usual ways in which a batch enters a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from localprop.errors import BadInput

__all__ = ["Task"]

# Hugging Face: `labels`, `label` before its collators rename it, and the names of time series.
TARGETS = ("labels", "label", "targets", "target", "future_values", "target_values")
# Hugging Face; torchvision's segmentation; Hugging Face's time series, which also return scales.
OUTPUTS = ("logits", "out", "prediction_outputs", "regression_outputs", "prediction_logits")
EXAMPLE = "task=lp.task(forward=lambda model, batch: {}, loss=...)"


Forward = Callable[[nn.Module, Any], Tensor]  # runs a model on a batch's data


class Task:
    """What a network is trained for: how a batch enters it, and what its output is worth.

    A batch is whatever a loader yields. The usual ones need no code. Of (inputs, targets), a tensor
    enters as model(inputs), a tuple or list as model(*inputs), a dictionary as model(**inputs). A
    dictionary with its targets among its values enters without them, unless the model is an
    encoder-decoder that makes its decoder's inputs of them. The output is the tensor that the model
    returns, or its `logits`, or `out`, or the only tensor of floating point besides `loss`.

    For other batches write a subclass, or use `task()`.

    Example:
        >>> class Halves(lp.Task):
        ...     def forward(self, model, batch):
        ...         return model(batch["left"], batch["right"])
        ...
        ...     def loss(self, output, batch):
        ...         return (output - batch["sum"]).square().mean()
        ...
        ...     def weight(self, batch):
        ...         return batch["sum"].numel()
    """

    # Whether outputs of several dimensions are numbers of a fixed shape, such as a forecast, that a
    # head may make at once from features with other positions.
    has_fixed_outputs: ClassVar[bool] = False

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        """Run a model on a batch. The outputs are one tensor.

        Raises:
            BadInput: the batch has no usual form, or the model returns several tensors.
        """
        return read_output(call_model(model, batch))

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        """Compute the loss of outputs, a mean, as a tensor without dimensions."""
        raise NotImplementedError(f"{type(self).__name__} has no loss.")

    def weight(self, batch: Any) -> Tensor | float | None:
        """The denominator of the mean that the loss is, or None where it is not known.

        The sum over parts of a batch of weight(part) / weight(batch) * loss(part) is the loss of
        the batch.
        """
        return None

    def total(self, output: Tensor, batch: Any) -> Tensor:
        """Compute the sum that the loss is the mean of: the loss times its denominator.

        A host that accumulates gradients over batches divides it by the denominator of all.

        Raises:
            BadInput: the denominator is not known.
        """
        weight = self.weight(batch)
        if weight is None:
            raise BadInput(
                f"The denominator of {type(self).__name__}'s mean is not known: give weight=... to "
                "lp.task()."
            )
        return self.loss(output, batch) * weight

    def targets(self, batch: Any) -> Tensor | None:
        """The targets, for losses that compare labels; None if there are none."""
        targets = find_targets(batch)
        return targets if isinstance(targets, Tensor) else None

    def find_problems(self, batch: Any, outputs: torch.Size) -> Iterable[str]:
        """Find out what is wrong with a batch.

        Values of targets are read on the CPU alone: on an accelerator that would wait for it.

        Args:
            batch: the batch.
            outputs: the shape of the network's output on it.
        """
        return ()


def require_targets(task: Task, batch: Any) -> Tensor:
    """The targets of a batch.

    Raises:
        BadInput: there are none, or they are no tensor.
    """
    targets = task.targets(batch)
    if targets is None:
        raise BadInput(
            f"The batch has no tensor of targets for {type(task).__name__}, but is "
            f"{describe(batch)}: say where they are, as in task=lp.task(loss={task!r}, "
            "targets=lambda batch: batch['xyz'])."
        )
    return targets


# --- the usual batches ----------------------------------------------------------------------------


class Entry(NamedTuple):
    """A batch, split into what the network gets and what it is compared with.

    Attributes:
        args: the arguments of the forward without a name.
        kwargs: those with a name.
        targets: the targets under the names by which a forward would take them, the usual first.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: dict[str, Any]


def split_batch(batch: Any) -> Entry:
    """Split a batch: (inputs, targets), a mapping with targets among its values, or inputs alone.

    Inputs are a tensor, a tuple or list of the forward's arguments, or a mapping of them.

    Raises:
        BadInput: the batch is none of these.

    Example:
        >>> split_batch({"x": 1, "labels": 2})
        Entry(args=(), kwargs={'x': 1}, targets={'labels': 2})
    """
    if isinstance(batch, Tensor):
        return Entry((batch,), {}, {})
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        inputs, *rest = batch
        targets = {"labels": rest[0]} if rest else {}
        if isinstance(inputs, Tensor):
            return Entry((inputs,), {}, targets)
        if isinstance(inputs, Mapping):
            return Entry((), dict(inputs), targets)
        several = isinstance(inputs, (tuple, list))
        return Entry(tuple(inputs) if several else (inputs,), {}, targets)
    if isinstance(batch, Mapping):
        targets = {name: batch[name] for name in TARGETS if name in batch}
        kwargs = {name: value for name, value in batch.items() if name not in targets}
        return Entry((), kwargs, targets)
    raise BadInput(
        f"A batch is (inputs, targets), a dictionary or a tensor, but this one is "
        f"{describe(batch)}: say how it enters the model, as in "
        f"{EXAMPLE.format('model(batch[0], batch[1])')}, and name the targets with targets=..."
    )


def call_model(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch. Targets stay out unless the forward makes inputs of them.

    An encoder-decoder of Hugging Face makes its decoder's inputs of the labels where the batch has
    none.

    Raises:
        BadInput: the batch has no usual form.
    """
    args, kwargs, targets = split_batch(batch)
    makes_inputs = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if makes_inputs and not any(name.startswith("decoder_input") for name in kwargs):
        kwargs = {**kwargs, **targets}
    return model(*args, **kwargs)


def find_targets(batch: Any) -> Any:
    """The targets of a batch of a usual form, or None.

    Raises:
        BadInput: the batch has no usual form.
    """
    if type(batch) is tuple and len(batch) == 2:  # at once: every loss of a step asks
        return batch[1]
    return next(iter(split_batch(batch).targets.values()), None)


def read_output(result: Any) -> Tensor:
    """Find the one tensor that a model's output is judged by.

    Raises:
        BadInput: there are several, or none.

    Example:
        >>> read_output({"loss": torch.zeros(()), "scores": torch.ones(2)})
        tensor([1., 1.])
    """
    if isinstance(result, Tensor):
        return result
    if dataclasses.is_dataclass(result) and not isinstance(result, Mapping):
        result = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    named = result if isinstance(result, Mapping) else {}
    for name in OUTPUTS:
        output = named.get(name)
        if isinstance(output, Tensor):
            return output
    values = [value for name, value in named.items() if name != "loss"] if named else result
    floating = [
        leaf
        for leaf in tree_leaves(values)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    if len(floating) == 1:
        return floating[0]
    example = "model(**batch).xyz" if named else "model(batch[0])[0]"
    raise BadInput(
        f"The model returns {describe(result)}: say which tensor is its output, as in "
        f"{EXAMPLE.format(example)}."
    )


def describe(value: Any) -> str:
    """A value in a few words, for messages.

    Example:
        >>> describe((torch.zeros(2, 3), None, {"mask": "no"}))
        '(a float32 tensor (2, 3), None, {mask: str})'
    """
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{'an' if dtype.startswith('int') else 'a'} {dtype} tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(describe, value)) + ")"
    return type(value).__name__
