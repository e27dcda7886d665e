"""Run one segment of a network again, before its backward.

::

    F     x ──► segment 0 ──► h0 ──► segment 1 ──► h1 ──► ...     no graphs, outputs are kept
    R     x ──► zeros ──────► h0 ──► segment 1 ──► StopForward    a graph, from h0 on
                               │
                            enter(): seed, leaf, contexts
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from localprop.engine.store import StepContext
from localprop.errors import BadInput
from localprop.network.partial_forward import StopForward, allclose_within_rounding, skip_layers
from localprop.schedule.wiring import Wiring
from localprop.tasks.batch import Batch


class Running(NamedTuple):
    """The segment that runs again, and of which batch: on several ranks it may be the batch
    before.
    """

    segment: int
    step: StepContext
    microbatch: int


class Recompute:
    """Runs segments again, as gradient checkpointing does (Chen et al. 2016, arXiv 1604.06174).

    The model's own forward runs, with the layers before the segment skipped, until the segment's
    end.

    The first output of a segment that runs again is compared with that of its first run. They
    differ if the model hands data past a cut without a gradient (`h.detach()` used later), which no
    probe can see.

    Args:
        model: the primary network, whose hooks call `arrive` while `running`.
        wiring: its segments.
        segments: those that run again.
    """

    def __init__(self, model: nn.Module, wiring: Wiring, segments: Iterable[int]) -> None:
        self.running: Running | None = None
        self._model = model
        self._wiring = wiring
        # A segment is compared once: its key is then gone. One comparison finds a model that cuts
        # do not suit; more would cost memory in every step.
        self._first_outputs: dict[int, Tensor | None] = dict.fromkeys(segments)

    def remember_output(self, segment: int, output: Tensor) -> None:
        """Keep the output of the very first run of a segment, in the first micro-batch, to compare
        with.
        """
        if segment in self._first_outputs and self._first_outputs[segment] is None:
            self._first_outputs[segment] = output.detach()

    def forget_outputs(self) -> None:
        """Drop what was kept to compare with, after a step that failed."""
        self._first_outputs = dict.fromkeys(self._first_outputs)

    def compare_nothing(self) -> None:
        """Trust the model: fake tensors have no values to compare."""
        self._first_outputs.clear()

    def arrive(self, segment: int, output: Tensor) -> Tensor:
        """What the hook at the end of a segment does while a segment runs again."""
        assert self.running is not None
        # Skipped layers run their hooks, since only their forwards are replaced. So cuts before the
        # segment come here, too, and pass on what they get.
        if segment == self.running.segment:
            raise StopForward(output)
        return output

    def skips(self, segment: int) -> bool:
        """Whether another segment runs again."""
        return self.running is not None and self.running.segment != segment

    def run(
        self,
        segment: int,
        batch: Batch,
        enter: Callable[[], Tensor],
        step: StepContext,
        microbatch: int,
    ) -> Tensor:
        """The output of a segment, with its graph.

        Args:
            segment: the segment.
            batch: what the network runs on.
            enter: called when the forward reaches the segment: sets the random state, makes the
                segment's input.
            step: the step that the segment runs again for.
            microbatch: the micro-batch.

        Raises:
            BadInput: the output differs from that of the first run.
        """
        # R mostly runs inside a hook, so that the model is called within its own call. `running`
        # tells the hooks which of the two calls has reached them.
        before, self.running = self.running, Running(segment, step, microbatch)
        try:
            with self._preserved_buffers(segment):
                self._run_model(segment, batch, enter)
        # The only way out: the last segment, which no hook ends, never runs again.
        except StopForward as stop:
            output = stop.output
        finally:
            self.running = before
        self._compare(segment, output)
        return output

    def _run_model(self, segment: int, batch: Batch, enter: Callable[[], Tensor]) -> None:
        forward = self._wiring.task.forward
        first = self._wiring.segments[segment].layers[0]
        # Nothing to skip, and no hook begins the first segment: its input is the batch.
        if first == 0:
            enter()
            forward(self._model, batch.data)
            return
        layers, entered = self._wiring.layers.at(batch), False

        def begin() -> Tensor:
            nonlocal entered
            entered = True
            return enter()

        try:
            with skip_layers(self._model, layers, first, batch, begin):
                forward(self._model, batch.data)
        except StopForward:
            raise
        except Exception as error:
            if entered:
                raise
            raise BadInput(
                f"The layers before {layers.names[first]!r} cannot be skipped when it runs again: "
                f"what runs between them reads values that they return ({type(error).__name__}: "
                f"{error}). Use recompute=False."
            ) from error

    def _compare(self, segment: int, output: Tensor) -> None:
        first = self._first_outputs.pop(segment, None)
        if first is not None and not allclose_within_rounding(first, output):
            raise BadInput(
                f"The layers up to {self._wiring.end_name(segment)!r} gave another output when "
                "they ran again: they read something that does not come through the cut before "
                "them. Use recompute=False, or cut elsewhere."
            )

    @contextmanager
    def _preserved_buffers(self, segment: int) -> Iterator[None]:
        """Run on copies of all buffers: a second run must not update running statistics.

        All of them, not only the segment's: a module that cannot be skipped runs on constants.
        Copying values back afterwards would not do, since the backward has saved the buffers and
        checks their versions.
        """
        key = str(self._wiring.segments[segment].module)
        encoders = [self._wiring.encoders[key]] if key in self._wiring.encoders else []
        modules = [each for network in (self._model, *encoders) for each in network.modules()]
        kept = [(module, dict(module._buffers)) for module in modules if module._buffers]
        for module, buffers in kept:
            copies = {name: None if b is None else b.clone() for name, b in buffers.items()}
            module._buffers.update(copies)
        try:
            yield
        finally:
            for module, buffers in kept:
                module._buffers.update(buffers)
