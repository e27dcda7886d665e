"""Which layers have the positions of the network's outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from localprop.network.calls import Call
from localprop.network.cuts import Cut
from localprop.network.probe import ForwardTrace, trace_again
from localprop.tasks.batch import Batch
from localprop.tasks.task import Forward


def find_followers(
    model: nn.Module, forward: Forward, batch: Batch, trace: ForwardTrace, ends: Sequence[Cut]
) -> tuple[bool, ...]:
    """For each layer, whether its output has the positions of the network's.

    The encoder of an encoder-decoder has not, even where both happen to be equally long. So one of
    the inputs is made longer: then the network's output or that of the layer is, but not both.
    """
    follow = [True] * (len(ends) or 1)
    if trace.output.ndim != 3:
        return tuple(follow)
    for chosen in _list_inputs_with_positions(model, batch, trace.output.shape):
        longer = batch.map(
            lambda tensor, chosen=chosen: (  # type: ignore[misc]
                torch.cat([tensor, tensor[:, :1]], 1) if tensor is chosen else tensor
            )
        )
        try:
            other = trace_again(model, forward, longer, trace.way, trace.batch.samples)
        except Exception:  # this input must be as long as another one
            continue
        shapes = {(call.name, call.number): _list_shapes(call) for call in other.calls}
        moved = trace.output.shape != other.output.shape
        for layer, end in enumerate(ends):
            was, now = _list_shapes(end.call), shapes.get((end.call.name, end.call.number))
            follow[layer] &= now is None or (was != now) == moved
    return tuple(follow)


def _list_inputs_with_positions(
    model: nn.Module, batch: Batch, outputs: torch.Size
) -> list[Tensor]:
    """The inputs that may each have positions of its own."""
    targets = batch.targets
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return [] if targets is None or targets.ndim < 2 else [targets]
    if hasattr(model, "config"):  # masks and the like, which are as long as the words
        return []
    long = [
        tensor
        for tensor in batch.tensors
        if tensor is not targets and tensor.ndim > 1 and tensor.shape[1] in outputs[1:]
    ]
    return long if len(long) > 1 else []


def _list_shapes(call: Call) -> list[torch.Size]:
    return [each.tensor.shape for each in call.outputs]
