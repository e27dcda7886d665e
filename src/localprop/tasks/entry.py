"""The usual ways in which a batch enters a network, and where its output is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from localprop.errors import BadInput

# Hugging Face: `labels`, `label` before its collators rename it, and the names of time series.
TARGETS = ("labels", "label", "targets", "target", "future_values", "target_values")
# Hugging Face; torchvision's segmentation; Hugging Face's time series, which also return scales.
OUTPUTS = ("logits", "out", "prediction_outputs", "regression_outputs", "prediction_logits")
EXAMPLE = "task=lp.task(forward=lambda model, batch: {}, loss=...)"


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
    if isinstance(batch, Mapping):
        targets = {name: batch[name] for name in TARGETS if name in batch}
        kwargs = {name: value for name, value in batch.items() if name not in targets}
        return Entry((), kwargs, targets)
    if isinstance(batch, Tensor):
        return Entry((batch,), {}, {})
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        inputs, *rest = batch
        targets = {"labels": rest[0]} if rest else {}
        if isinstance(inputs, Mapping):
            return Entry((), dict(inputs), targets)
        several = isinstance(inputs, (tuple, list))
        return Entry(tuple(inputs) if several else (inputs,), {}, targets)
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
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(describe, value)) + ")"
    return type(value).__name__
