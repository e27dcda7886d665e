"""Run one segment of a network again, before its backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from localprop.errors import BadInput
from localprop.network.partial_forward import StopForward, allclose_within_rounding, skip_layers
from localprop.schedule.wiring import Wiring


class Recompute:
    """Runs segments again, as gradient checkpointing does (Chen et al. 2016, arXiv 1604.06174).

    The first time that a segment runs again its output is compared with the first run's: a model that hands data past a
    cut without a gradient (`h.detach()` used later) would differ.

    Args:
        model: the primary network, whose hooks call :meth:`arrive` while :attr:`running`.
        wiring: its segments.
    """

    def __init__(self, model: nn.Module, wiring: Wiring, again: Iterable[int]) -> None:
        self.model = model
        self.wiring = wiring
        self.running: int | None = None
        self.unproven: dict[int, Tensor | None] = dict.fromkeys(again)

    def remember(self, s: int, output: Tensor) -> None:
        """Keep the output of the very first run of a segment, in the first micro-batch, to compare with."""
        if s in self.unproven and self.unproven[s] is None:
            self.unproven[s] = output.detach()

    def forget(self) -> None:
        """Drop what was kept for a comparison, after a step that failed."""
        self.unproven = dict.fromkeys(self.unproven)

    def arrive(self, s: int, output: Tensor) -> Tensor:
        """What the hook at the end of segment s does while a segment runs again."""
        if s == self.running:
            raise StopForward(output)
        return output

    def __call__(self, s: int, inputs: Tensor, enter: Callable[[], Tensor]) -> Tensor:
        """The output of segment s, with its graph.

        Args:
            s: the segment.
            inputs: the network's input (N, ...).
            enter: called when the network's forward reaches the segment: sets the random state, makes the segment's input.

        Raises:
            BadInput: the output differs from that of the first run.
        """
        running, self.running = self.running, s
        try:
            with self._kept_buffers(s):
                self._run(s, inputs, enter)
        except StopForward as reached:
            output = reached.output
        finally:
            self.running = running
        self._prove(s, output)
        return output

    def _run(self, s: int, inputs: Tensor, enter: Callable[[], Tensor]) -> None:
        first = self.wiring.segments[s].layers[0]
        if first == 0:
            self.model(enter())
            return
        with skip_layers(self.model, self.wiring.layers, first, inputs, enter):
            self.model(inputs)

    def _prove(self, s: int, output: Tensor) -> None:
        first = self.unproven.pop(s, None)
        if first is not None and not allclose_within_rounding(first, output):
            raise BadInput(
                [
                    f"The layers up to {self.wiring.end_name(s)!r} gave another output when they ran again: they read "
                    "something that does not come through the cut before them. Use recompute=False, or cut elsewhere."
                ]
            )

    @contextmanager
    def _kept_buffers(self, s: int) -> Iterator[None]:
        """A second run must not update running statistics: for its time, buffers are copies of themselves.

        All of them, not only the segment's: what cannot be stubbed runs on the stubs' constants.
        """
        key = str(self.wiring.segments[s].module)
        encoders = [self.wiring.encoders[key]] if key in self.wiring.encoders else []
        owners = [
            module
            for part in (self.model, *encoders)
            for module in part.modules()
            if module._buffers
        ]
        kept = [(module, dict(module._buffers)) for module in owners]
        for module, buffers in kept:
            module._buffers.update(
                {name: None if b is None else b.clone() for name, b in buffers.items()}
            )
        try:
            yield
        finally:
            for module, buffers in kept:
                module._buffers.update(buffers)
