"""Contexts during a step: which inputs of modules are kept for later modules, and what is added at an inlet."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from localprop.schedule.wiring import Wiring

ModuleInputs = dict[tuple[int, int], Tensor]  # (module, micro-batch) -> the module's input


class ContextStore:
    """Keeps the inputs of modules as long as somebody here will read them.

    Args:
        wiring: with sources and encoders.
        own: the segments that run here.
        sent: the inlets among them whose inputs are sent to other ranks.
        stay: whether segments run again, so that inputs must stay.
    """

    def __init__(self, wiring: Wiring, own: range, sent: Iterable[int], *, stay: bool) -> None:
        self.encoders = {s: wiring.encoders_at(s) for s in own}
        self._wiring = wiring
        self._sent = frozenset(sent)
        self._stay = stay
        module_inputs = [wiring.segments[s].module for s in own if wiring.segments[s].starts_module]
        self._last_receiver = {
            source.module: module for module in module_inputs for source in wiring.sources[module]
        }

    def reads_input(self) -> bool:
        """Whether a module here receives the network's input."""
        return 0 in self._last_receiver

    def added(
        self, s: int, m: int, segment_input: Tensor, module_inputs: ModuleInputs
    ) -> Tensor | None:
        """The input of segment s with its contexts; None if it has none."""
        encoders = self.encoders[s]
        if encoders is None:
            return None
        for source, encoder in zip(
            self._wiring.sources[self._wiring.segments[s].module], encoders, strict=True
        ):
            segment_input = segment_input + encoder(module_inputs[source.module, m])
        return segment_input

    def keep(
        self,
        s: int,
        m: int,
        segment_input: Tensor,
        module_inputs: ModuleInputs,
        *,
        modified_in_place: bool,
    ) -> None:
        """Keep a module's input if a later module receives it, drop those that nobody will read again."""
        segment = self._wiring.segments[s]
        if not segment.starts_module:
            return
        if segment.module in self._last_receiver or s in self._sent:
            kept = segment_input.detach()
            module_inputs[segment.module, m] = kept.clone() if modified_in_place else kept
        for place in [place for place in module_inputs if self._is_read(place[0], segment.module)]:
            del module_inputs[place]

    def _is_read(self, source: int, now: int) -> bool:
        """Whether all that read an inlet have done so when module `now` begins; what is sent goes after its own forward."""
        return not self._stay and self._last_receiver.get(source, source + 1) <= now

    def forget(self, m: int, module_inputs: ModuleInputs) -> None:
        """At the end of micro-batch m, drop what nobody here will read again; what has come for the next one stays."""
        if not self._stay:
            for place in [place for place in module_inputs if place[1] == m]:
                del module_inputs[place]
