"""Run a range of layers alone, by the network's own forward.

No layer is rebuilt, so any code of the user's forward between the modules runs as it is. The layers
before the range return constants, and a hook at the end of the range stops the forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from localprop.network.layers import Layers, Submodule, TensorShape
from localprop.network.modes import evaluation_mode
from localprop.network.outputs import list_tensors
from localprop.tasks.batch import Batch
from localprop.tasks.task import Forward


class StopForward(Exception):
    """Ends a forward at the end of a range of layers. Whoever runs the forward catches it.

    Attributes:
        output: the output (N, ...) of the last layer of the range.
    """

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


MakeInput = Callable[[], Mapping[int, Tensor]]


@contextmanager
def skip_layers(
    model: nn.Module, layers: Layers, first: int, batch: Batch, make_input: MakeInput
) -> Iterator[None]:
    """Within the context, the model's forward skips the layers before `first`.

    Every module before `first` returns zeros, which take no memory if possible. The module at whose
    return layer `first` begins returns what `make_input()` gives instead::

        layers        0           1                     2 = first      3
        as it is      stem ─────► block0 ─────────────► block1 ──────► block2 ──► ...
        skipped       zeros ────► make_input() ───────► block1 ──────► block2 ──► ...

    Args:
        model: the primary network.
        layers: its layers, as they are on this batch.
        first: the layer to begin with, 1 or more.
        batch: what the network runs on.
        make_input: makes the input of layer `first`, when the forward gets there: tensors by their
            places among those that this module returns.
    """
    skipped = [submodule for layer in range(first) for submodule in layers.submodules[layer]]
    previous: list[tuple[nn.Module, Callable[..., Any] | None]] = []
    for submodule in skipped:
        module = model.get_submodule(submodule.name)
        make = partial(_make_output, layers, submodule, batch, first, make_input)
        # nn.Module has `forward` on its class. Users may set another one on the instance, and that
        # one has to come back afterwards.
        previous.append((module, module.__dict__.get("forward")))
        # The forward is replaced, not the module: hooks at the cut still run, and names still hold.
        module.forward = _ignore_arguments(make)
    try:
        yield
    finally:
        for module, forward in previous:
            del module.forward
            if forward is not None:
                module.forward = forward


@torch.no_grad()
def find_isolation_problems(
    model: nn.Module, layers: Layers, segment: range, forward: Forward, like: Batch
) -> list[str]:
    """Whether a range of layers gives the same output in the whole network and alone.

    It does not if the range reads data that passes the cut without a gradient, for example
    `h.detach()` of an earlier layer. The probe of layers cannot see that, because the autograd
    graph has no edge for it. Both runs are in evaluation mode.

    Args:
        model: the primary network.
        layers: its layers.
        segment: the range of layers.
        forward: runs the model on a batch's data.
        like: a batch. Of fractions only shape and dtype are used.

    Returns:
        A sentence if the outputs differ.
    """
    if segment[0] == 0:
        return []
    # Noise, since a batch of zeros might hide a difference. Whole numbers are indices and masks:
    # noise would be out of their range, so they stand as they are, and once in another order. The
    # generator is our own, so that the run's random state stays as it is.
    generator = torch.Generator().manual_seed(0)

    def add_noise(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

    def shuffle(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return tensor
        return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view_as(tensor)

    noisy = like.map(add_noise)
    batches = [noisy]
    if not all(tensor.is_floating_point() for tensor in like.tensors):
        batches.append(noisy.map(shuffle))
    device = next(model.parameters()).device
    if all(_is_same_alone(model, layers, segment, forward, batch.to(device)) for batch in batches):
        return []
    return [
        f"The layers from {layers.names[segment[0]]!r} to {layers.names[segment[-1]]!r} give "
        "another output when they run alone: they read data that does not come through the cut "
        "before them. Move the cut (partition=, ranks=Ranks(cuts=...)), or train in one process."
    ]


def _is_same_alone(
    model: nn.Module, layers: Layers, segment: range, forward: Forward, batch: Batch
) -> bool:
    with evaluation_mode(model):
        entered, expected = _run_segment(model, layers, segment, forward, batch)

        def make_input() -> dict[int, Tensor]:
            return layers.place_crossing(segment[0] - 1, [each.clone() for each in entered])

        with skip_layers(model, layers, segment[0], batch, make_input):
            _, alone = _run_segment(model, layers, segment, forward, batch)
    return all(map(allclose_within_rounding, expected, alone))


def allclose_within_rounding(one: Tensor, other: Tensor) -> bool:
    """Whether two runs of one computation gave the same result, up to a few rounding errors."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    # Not torch.equal: PyTorch may choose another kernel for the second run, which sums in another
    # order. The tolerance follows the dtype's precision: about 1e-4 in float32, 3e-11 in float64.
    rtol = 16 * torch.finfo(one.dtype).eps ** 0.75
    return torch.allclose(one, other, rtol=rtol, atol=rtol / 10, equal_nan=True)


def _run_segment(
    model: nn.Module, layers: Layers, segment: range, forward: Forward, batch: Batch
) -> tuple[list[Tensor], list[Tensor]]:
    """What crosses the beginning and the end of a range of layers, in one forward of the model."""
    entered: list[Tensor] = []
    left: list[Tensor] = []
    before, last = segment[0] - 1, segment[-1]
    start, end = (model.get_submodule(layers.names[i]) for i in (before, last))

    def keep_input(module: nn.Module, args: object, output: Any) -> None:
        # Copies, since the next layer may write into its input.
        crossing = layers.select_crossing(before, list_tensors(output))
        entered.extend(each.clone() for each in crossing)

    def stop(module: nn.Module, args: object, output: Any) -> None:
        left.extend(layers.select_crossing(last, list_tensors(output)))
        raise StopForward(left[0])

    handles = [start.register_forward_hook(keep_input)]
    # The last layer ends with the model's output, after the module of its name.
    if last < len(layers) - 1:
        handles.append(end.register_forward_hook(stop))
    try:
        left.append(forward(model, batch.data))
    except StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return entered, left


def _make_output(
    layers: Layers,
    submodule: Submodule,
    batch: Batch,
    first: int,
    make_input: MakeInput,
) -> Any:
    """What a skipped submodule returns: zeros or, where layer `first` begins, its input."""
    entered = make_input() if submodule.name == layers.names[first - 1] else {}
    return submodule.make_output(
        entered[i] if i in entered else _make_zeros(layers, each, batch)
        for i, each in enumerate(submodule.tensors)
    )


def _make_zeros(layers: Layers, tensor: TensorShape, batch: Batch) -> Tensor:
    shape = layers.shape_for(tensor.shape, tensor.growth, batch.samples)
    # An expanded scalar has the shape without the memory, but one element stands for all, so the
    # model cannot write into it.
    # Nobody looks at it, whatever counts bytes or makes fakes: with many ranks there are many.
    with _disable_current_modes():
        zeros = torch.zeros((), dtype=tensor.dtype, device=batch.inputs.device).expand(shape)
    return zeros.clone() if tensor.modified_in_place else zeros


def _ignore_arguments(make: Callable[[], Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: make()
