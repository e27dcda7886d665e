"""Run a stretch of a network alone: its own forward, with the layers before the stretch stubbed, stopped at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from localprop.network.layers import Layers, Piece


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


def _blank(layers: Layers, piece: Piece, inputs: Tensor) -> Tensor:
    shape = layers.shape_for(piece.shape, len(inputs))
    blank = torch.zeros((), dtype=piece.dtype, device=inputs.device).expand(shape)
    return blank.clone() if piece.overwritten else blank


def _calling(make: Callable[[], Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: make()
