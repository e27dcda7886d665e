"""Recompute: calls of layers run again in the backward, on what they ran on before.

Hooks at a layer's outermost modules open a frame (frames.py) around each call, or around a chain of
calls, and record what a second run needs besides the arguments::

    F    counter 3 ──► call ──► counter 4          counter 5, 6 ... by other calls
    B    counter 3 ──► the same call ──► counter 4 ──► put right: 6

Nothing outside of the layers runs twice. What is left is compared: the first second run of each
call must save what its first run has saved, and change nothing that is not set back; of later ones
a few numbers are compared.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from localprop.engine.frames import (
    Arguments,
    Frame,
    Held,
    NotContinued,
    OtherRun,
    SecondRun,
    has_saved_tensor_hooks,
    storage_of,
)
from localprop.engine.plan import StepPlan
from localprop.engine.recorded_calls import Autocast, Chain, Draws, RecordedCall, WatchedModule
from localprop.errors import BadInput
from localprop.network.attributes import Kept, Snapshot, list_mappings, read_attributes
from localprop.network.layers import LayerCall
from localprop.network.recomputed import Recomputed
from localprop.schedule.randomness import SeededGenerators

# Numbers that are summed at once; those of a sample, and of how many tensors one is taken.
_PART, _SAMPLE, _SAMPLED = 2**13, 16, 3


def make_recompute(plan: StepPlan, model: nn.Module, recomputed: Recomputed) -> Recompute | None:
    """What runs the calls of the recomputed layers again, if there are any in this part of a step.

    Args:
        plan: of the step.
        model: the primary network.
        recomputed: the layers.
    """
    wiring, segments = plan.wiring, plan.stage.segments
    with_loss = {objective.segment for objective in wiring.objectives}
    spans = ((wiring.segments[s].layers, s in with_loss) for s in segments)
    calls = recomputed.list_calls(wiring.layers, spans)
    if not calls:
        return None
    starts = (wiring.encoders_at(segment) for segment in segments)
    encoders = [encoder for own in starts if own is not None for encoder in own]
    return Recompute(model, calls, encoders, plan.generators, plan.device_type)


class Recompute:
    """Runs calls again.

    Args:
        model: the primary network.
        calls: those to run again, chain by chain.
        encoders: auxiliary networks all of whose calls run again.
        generators: torch's.
        device_type: of the device that the step runs on.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: list[list[LayerCall]],
        encoders: Sequence[nn.Module],
        generators: SeededGenerators,
        device_type: str,
    ) -> None:
        self._model, self._generators = model, generators
        self._device_types = tuple(dict.fromkeys((device_type, "cpu")))
        self._watched: dict[nn.Module, WatchedModule] = {}
        self._last: dict[int, tuple[str, int]] = {}
        for chain, members in enumerate(calls):
            for call in members:
                watched = self._watch(call.name, model.get_submodule(call.name))
                watched.chains[call.number] = chain
                if call.is_overwritten:
                    watched.copied.add(call.number)
                self._last[chain] = (call.name, call.number)
        # The dicts of all parameters and buffers.
        self._holders = [
            holder
            for network in (model, *encoders)
            for module in network.modules()
            for holder in (module._parameters, module._buffers)
        ]
        for encoder in encoders:
            self._watch("an encoder of contexts", encoder)  # in no chain: calls run one by one
        self._trusts, self._compares_all = False, False
        self._parameters = set[int]()
        # The chain that calls may still join, with its frame; and the call that runs now.
        self._chain: tuple[Chain, Frame] | None = None
        self._open: tuple[WatchedModule, Snapshot, Draws | None] | None = None
        # How often the module that runs has called itself.
        self._depth = 0
        # What the chain before has saved of its outputs.
        self._outputs: tuple[Chain, list[weakref.ref[Held]]] | None = None
        # Frames that somebody looks at, without running them again.
        self._peeked: list[Chain] | None = None
        # The chains that run again now, the innermost last.
        self._running: list[Chain] = []

    def _watch(self, name: str, module: nn.Module) -> WatchedModule:
        if module not in self._watched:
            self._watched[module] = WatchedModule(name, module, self._generators)
        return self._watched[module]

    def trust(self) -> None:
        """Compare nothing, and watch no draws: fake tensors have no values."""
        self._trusts = True

    def compare_all(self) -> None:
        """Compare each second run from here on, and not only the first."""
        self._compares_all = True

    def hook(self) -> Iterator[Any]:
        """Register the hooks, before all that the modules have; gives their handles."""
        for module, watched in self._watched.items():
            yield module.register_forward_pre_hook(
                partial(self._begin, watched), prepend=True, with_kwargs=True
            )
            yield module.register_forward_hook(
                partial(self._end, watched), prepend=True, always_call=True
            )

    def begin_forward(self) -> None:
        """A forward begins."""
        for watched in self._watched.values():
            watched.count = 0
        tensors = (each for holder in self._holders for each in holder.values() if each is not None)
        storages = map(storage_of, tensors)
        self._parameters = {each._cdata for each in storages if each is not None}

    def end_forward(self) -> None:
        """A forward has ended, or failed."""
        if self._open is not None:
            assert self._chain is not None
            self._chain[1].end(None)
        self._open, self._chain, self._depth = None, None, 0
        self._outputs = None

    # --- the first run --------------------------------------------------------------------------

    def _begin(
        self, watched: WatchedModule, module: nn.Module, args: tuple[Any, ...], kwargs: Any
    ) -> None:
        if self._running:
            self._running[-1].enter(watched)
            return
        if torch._C._current_graph_task_id() != -1:  # a checkpoint of the model's own runs again
            return
        if self._open is not None:
            self._depth += self._open[0] is watched
            return
        watched.count += 1
        number = watched.chains.get(watched.count) if watched.chains else -1
        if number is None or not torch.is_grad_enabled() or has_saved_tensor_hooks():
            return
        before = watched.attributes.read(), None if self._trusts else watched.draws.read()
        copied = watched.count in watched.copied
        arguments = self._continue(number, args, kwargs, copied=copied)
        assert self._chain is not None
        chain = self._chain[0]
        chain.calls.append(
            RecordedCall(watched, watched.count, arguments, Autocast.read(self._device_types))
        )
        self._open = watched, *before

    def _continue(
        self, number: int, args: tuple[Any, ...], kwargs: Any, *, copied: bool
    ) -> Arguments:
        """Begin a call in the frame that is open if it continues that, and else in a new one."""
        if self._chain is not None and self._chain[0].number == number:
            with suppress(NotContinued):
                return self._chain[1].begin(args, kwargs, copied=copied)
        self._close()
        chain = Chain(number)
        frame = Frame(self._parameters, partial(self._run_again, chain))
        self._chain = chain, frame
        arguments = frame.begin(args, kwargs, copied=copied)
        before, self._outputs = self._outputs, None
        if before is not None and before[0].calls:  # it has not run again meanwhile
            for output in (ref() for ref in before[1]):
                if output is not None and not frame.holds(output.storage):
                    output.drop()
        return arguments

    def _end(self, watched: WatchedModule, module: nn.Module, args: object, output: Any) -> None:
        if self._running:
            self._running[-1].leave(watched, output)
            return
        if self._open is None or self._open[0] is not watched:
            return
        if self._depth:
            self._depth -= 1
            return
        (_, attributes, draws), self._open = self._open, None
        assert self._chain is not None
        chain, frame = self._chain
        frame.end(output)
        try:
            if draws is not None:
                chain.calls[-1].draws = watched.draws.find_draws(draws)
            chain.calls[-1].changes = watched.attributes.find_changes(attributes)
        except LookupError:
            chain.stored = True
        if self._last.get(chain.number, watched.place) == watched.place:
            self._close()

    def _close(self) -> None:
        """Drop what the calls of the open frame have saved."""
        if self._chain is None:
            return
        (chain, frame), self._chain = self._chain, None
        for call in chain.calls:
            if call.arguments.are_overwritten():
                chain.stored = True
                call.watched.copied.add(call.number)
        found = None if chain.stored else frame.close()
        if found is None:
            chain.forget()
            return
        dropped, outputs = found
        if not self._trusts:
            known = all(call.number in call.watched.compared for call in chain.calls)
            chain.sums = None if known and not self._compares_all else sum_up(frame)
            chain.samples = take_samples(frame)
        for held in dropped:
            held.drop()
        self._outputs = chain, [*map(weakref.ref, outputs)]

    # --- the second run -------------------------------------------------------------------------

    @contextmanager
    def peeking(self) -> Iterator[list[Chain]]:
        """Within the context nothing runs again: saved tensors that are missing stay so.

        Gives a list, which gets the chains whose saved tensors are asked for.
        """
        self._peeked = []
        try:
            yield self._peeked
        finally:
            self._peeked = None

    def _run_again(self, chain: Chain, frame: Frame) -> None:
        if self._peeked is not None:
            self._peeked.append(chain)
            return
        if any(call.arguments.are_overwritten() for call in chain.calls):
            raise BadInput(
                f"{chain} cannot run again: something wrote into its arguments after it had "
                "returned. Leave it out of recompute=."
            )
        attributes: list[Kept] = []
        if chain.sums is not None:
            attributes = read_attributes(list_mappings(self._model.modules()))
        again = SecondRun(frame, chain.complete)
        self._running.append(chain)
        try:
            again.fill(lambda: chain.run(again))
        except OtherRun as error:
            raise BadInput(f"{chain} did other things when it ran again: {error}.") from error
        finally:
            self._running.pop()
        self._compare(chain, frame, attributes)
        chain.forget()

    def _compare(self, chain: Chain, frame: Frame, attributes: list[Kept]) -> None:
        first = chain.sums or {}
        again = sum_up(frame) if first else {}
        samples = [
            (sample_of(held), chain.samples[place])
            for place, held in frame.list_held().items()
            if place in chain.samples
        ]
        sums = ((numbers, first[place]) for place, numbers in again.items())
        if not all(_are_near(one, two) for one, two in (*samples, *sums)):
            raise BadInput(
                f"{chain} gave other values when it ran again: it reads something that is neither "
                "among its arguments nor an attribute of its own, and that has changed meanwhile. "
                "Leave it out of recompute=."
            )
        changed = [kept.key for kept in attributes if kept.has_changed()]
        if changed:
            raise BadInput(
                f"{chain} changes {', '.join(map(repr, changed))} outside of itself, and did so "
                "twice when it ran again. Leave it out of recompute=."
            )
        for call in chain.calls:
            call.watched.compared.add(call.number)


def sum_up(frame: Frame) -> dict[int, Tensor]:
    """Sums of what a frame holds, by place."""
    held = ((place, each.tensor) for place, each in frame.list_held().items())
    return {place: _sum(tensor) for place, tensor in held if tensor is not None and _counts(tensor)}


def _counts(tensor: Tensor) -> bool:
    """Whether the values of a saved tensor say something: not those of a kernel's workspace."""
    return tensor.dtype is not torch.uint8 and not tensor.is_quantized


def _sum(tensor: Tensor) -> Tensor:
    """The sum of the elements, of their sizes, and a sum that depends on their order."""
    sums = torch.zeros(3, dtype=torch.float64, device=tensor.device)
    rows = tensor if tensor.ndim else tensor[None]
    # In parts, since copies of large tensors would raise the peak.
    for start in range(0, len(rows), step := max(1, _PART * len(rows) // max(1, rows.numel()))):
        part = rows[start : start + step]
        values = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
        values = values.to(torch.float64).flatten()
        ramp = torch.arange(1, len(values) + 1, dtype=torch.float64, device=tensor.device)
        sums = sums * 1.5 + torch.stack([values.sum(), values.abs().sum(), values @ ramp])
    return sums


def take_samples(frame: Frame) -> dict[int, Tensor]:
    """A few numbers of the last tensors that a frame holds, by place.

    They depend on most of what the calls have read, so they are compared at each second run.
    """
    held = ((place, each) for place, each in reversed(frame.list_held().items()) if _tells(each))
    return {place: sample_of(each) for place, each in islice(held, _SAMPLED)}


def _tells(held: Held) -> bool:
    tensor = held.tensor
    return tensor is not None and tensor.is_floating_point() and tensor.numel() > 0


def sample_of(held: Held) -> Tensor:
    """A few numbers of a saved tensor, in a copy."""
    assert held.tensor is not None
    tensor = held.tensor
    if not tensor.is_contiguous():  # flattening it would copy all
        tensor = tensor[tuple(size // 2 for size in tensor.shape[:-1])]
    return tensor.flatten()[:: max(1, tensor.numel() // _SAMPLE)].clone()


def _are_near(one: Tensor, other: Tensor) -> bool:
    """Whether two runs of one computation gave the same numbers."""
    if one.device.type == "cpu":
        return bool(((one == other) | (one.isnan() & other.isnan())).all())
    # Other devices may choose another kernel for the second run, which sums in another order.
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()), equal_nan=True)
