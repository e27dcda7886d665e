"""Run one segment of a network again: the model's own forward, with the layers before it stubbed, stopped at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from localprop.errors import BadInput
from localprop.network.layers import Piece
from localprop.step.wiring import Wiring


class _Reached(Exception):
    """The segment's end was reached; no error, and never seen outside."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


class Rerun:
    """Runs segments again, as gradient checkpointing does (Chen et al. 2016, arXiv 1604.06174).

    The first time that a segment runs again its output is compared with the first run's: a model that hands data past a
    cut without a gradient (`h.detach()` used later) would differ.

    Args:
        model: the primary network, whose hooks call :meth:`arrive` while :attr:`running`.
        wiring: its segments.
    """

    def __init__(self, model: nn.Module, wiring: Wiring) -> None:
        self.model = model
        self.wiring = wiring
        self.running: int | None = None
        self.unproven: dict[int, Tensor | None] = dict.fromkeys(range(len(wiring.segments) - 1))

    def remember(self, s: int, output: Tensor) -> None:
        """Keep the output of the very first run of a segment, to compare with."""
        if s in self.unproven and self.unproven[s] is None:
            self.unproven[s] = output.detach()

    def arrive(self, s: int, output: Tensor) -> Tensor:
        """What the hook at the end of segment s does while a segment runs again."""
        if s == self.running:
            raise _Reached(output)
        return output

    def __call__(self, s: int, inputs: Tensor, enter: Callable[[], Tensor]) -> Tensor:
        """The output of segment s, with its graph.

        Args:
            s: the segment.
            inputs: the network's input (N, ...).
            enter: makes the segment's input.

        Raises:
            BadInput: the output differs from that of the first run.
        """
        running, self.running = self.running, s
        try:
            with self._kept_buffers(s), self._stubbed(s, len(inputs), enter() if s else inputs):
                self.model(enter() if s == 0 else inputs)
        except _Reached as reached:
            output = reached.output
        finally:
            self.running = running
        self._prove(s, output)
        return output

    def _prove(self, s: int, output: Tensor) -> None:
        first = self.unproven.pop(s, None)
        if first is not None and not torch.allclose(first, output, rtol=1e-3, atol=1e-5):
            raise BadInput(
                [
                    f"The layers up to {self.wiring.end_name(s)!r} gave another output when they ran again: they read "
                    "something that does not come through the cut before them. Use recompute=False, or cut elsewhere."
                ]
            )

    def _pieces(self, first: int, stop: int) -> Iterator[Piece]:
        for layer in range(first, stop):
            yield from self.wiring.layers.pieces[layer]

    @contextmanager
    def _kept_buffers(self, s: int) -> Iterator[None]:
        """A second run must not update running statistics: for its time, buffers are copies of themselves."""
        own = self.wiring.segments[s].layers
        key = str(self.wiring.segments[s].module)
        encoders = [self.wiring.encoders[key]] if key in self.wiring.encoders else []
        pieces = [self.model.get_submodule(piece.name) for piece in self._pieces(own[0], own[-1] + 1)]
        owners = [module for part in (*pieces, *encoders) for module in part.modules() if module._buffers]
        kept = [(module, dict(module._buffers)) for module in owners]
        for module, buffers in kept:
            module._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
        try:
            yield
        finally:
            for module, buffers in kept:
                module._buffers.update(buffers)

    @contextmanager
    def _stubbed(self, s: int, batch: int, entered: Tensor) -> Iterator[None]:
        """Every module before the segment returns a constant that takes no memory, the one at the cut the input."""
        stubs: list[tuple[nn.Module, Callable[..., Any] | None]] = []
        before = self.wiring.segments[s].layers[0]
        sample = self.wiring.layers.input_shape[0]
        for piece in self._pieces(0, before):
            module = self.model.get_submodule(piece.name)
            shape = (batch, *piece.shape[1:]) if piece.shape[0] == sample else piece.shape
            at_cut = bool(before) and piece.name == self.wiring.layers.names[before - 1]
            blank = entered if at_cut else torch.zeros((), dtype=piece.dtype, device=entered.device).expand(shape)
            stubs.append((module, module.__dict__.get("forward")))
            module.forward = _returning(blank)
        try:
            yield
        finally:
            for module, own in stubs:
                del module.forward
                if own is not None:  # a forward of the user's that had been set on the instance
                    module.forward = own


def _returning(tensor: Tensor) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: tensor
