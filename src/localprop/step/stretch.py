"""Run a stretch of a network alone: its own forward, with the layers before the stretch stubbed, stopped at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from localprop.errors import BadInput
from localprop.network.layers import Layers, Piece
from localprop.network.modes import evaluating


class Reached(Exception):
    """The end of a stretch was reached; no error, and never seen outside."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


@contextmanager
def stubbed(
    model: nn.Module, layers: Layers, first: int, inputs: Tensor, enter: Callable[[], Tensor]
) -> Iterator[None]:
    """For the time of the context, the model's forward skips the layers before `first`.

    Every module before the cut returns a constant, which takes no memory if it can; the one at the cut enters::

        inputs ──► 0 ──► 0 ──► enter() ──► layer `first` ──► ...

    Args:
        model: the primary network.
        layers: its layers.
        first: the layer to begin with, 1 or more.
        inputs: the network's input (N, ...); only N and the device count.
        enter: makes the input of that layer, when the forward gets there.
    """
    stubs: list[tuple[nn.Module, Callable[..., Any] | None]] = []
    for piece in (piece for layer in range(first) for piece in layers.pieces[layer]):
        module = model.get_submodule(piece.name)
        stubs.append((module, module.__dict__.get("forward")))
        at_cut = piece.name == layers.names[first - 1]
        module.forward = _calling(enter if at_cut else partial(_blank, layers, piece, inputs))
    try:
        yield
    finally:
        for module, own in stubs:
            del module.forward
            if own is not None:  # a forward of the user's that had been set on the instance
                module.forward = own


@torch.no_grad()
def prove(model: nn.Module, layers: Layers, own: range, like: Tensor) -> None:
    """Run a stretch in the whole network and alone, in evaluation mode: both must give the same.

    They do not if data goes past a cut without a gradient, as `h.detach()` used later, which the probe of layers cannot see.

    Args:
        model: the primary network.
        layers: its layers.
        own: the layers of the stretch.
        like: a batch of inputs; only shape and dtype are used.

    Raises:
        BadInput: the outputs differ.
    """
    if own[0] == 0:
        return
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(like.shape, generator=generator) if like.is_floating_point() else like
    inputs = drawn.to(device=next(model.parameters()).device, dtype=like.dtype)
    with evaluating(model):
        entered, whole = _at(model, layers, own, inputs)
        assert entered is not None
        with stubbed(model, layers, own[0], inputs, entered.clone):
            _, alone = _at(model, layers, own, inputs)
    if not alike(whole, alone):
        raise BadInput(
            f"The layers from {layers.names[own[0]]!r} to {layers.names[own[-1]]!r} give another output when they run alone: "
            "they read something that does not come through the cut before them. Put the cut elsewhere (partition=, "
            "ranks=Ranks(cuts=...)), or train in one process."
        )


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two runs gave the same. Kernels may be chosen anew, so a few units in the last place are granted."""
    rtol = 16 * torch.finfo(one.dtype).eps ** 0.75
    return torch.allclose(one, other, rtol=rtol, atol=rtol / 10, equal_nan=True)


def _at(model: nn.Module, layers: Layers, own: range, inputs: Tensor) -> tuple[Tensor | None, Tensor]:
    """What enters a stretch and what leaves it, in one forward."""
    entered: list[Tensor] = []
    start, end = (model.get_submodule(layers.names[layer]) for layer in (own[0] - 1, own[-1]))

    def stop(module: nn.Module, args: object, output: Tensor) -> None:
        raise Reached(output)

    handles = [start.register_forward_hook(lambda module, args, output: entered.append(output.clone()))]
    handles += [end.register_forward_hook(stop)] if own[-1] < len(layers) - 1 else []
    try:
        output: Tensor = model(inputs)
    except Reached as reached:
        output = reached.output
    finally:
        for handle in handles:
            handle.remove()
    return entered[0] if entered else None, output


def _blank(layers: Layers, piece: Piece, inputs: Tensor) -> Tensor:
    shape = layers.shape_for(piece.shape, len(inputs))
    blank = torch.zeros((), dtype=piece.dtype, device=inputs.device).expand(shape)
    return blank.clone() if piece.overwritten else blank


def _calling(make: Callable[[], Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: make()
