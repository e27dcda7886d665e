"""Recompute: calls of layers run again in the backward, on what they ran on before.

Hooks at a layer's outermost modules open a frame (frames.py) around each call, or around a chain of
calls, and record what a second run needs besides the arguments::

    F    counter 3 ──► call ──► counter 4          counter 5, 6 ... by other calls
    B    counter 3 ──► the same call ──► counter 4 ──► put right: 6

Calls may run again together, and parts of them once more::

    F    x0 ──► a ──► b ──► c ──► d             only x0 stays
    B    x0 ──► a ──► b, x2 ──► c ──► d         then the backward of c and d
         x0 ──► a ──► b                         then the backward of a and b

Nothing outside of the layers runs twice. What is left is compared: the first second run of each
call must save what its first run has saved, and change nothing that is not set back; of later ones
a few numbers are compared.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
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
    Saved,
    SecondRun,
    storage_of,
)
from localprop.engine.plan import StepPlan
from localprop.engine.recorded_calls import (
    Autocast,
    Chain,
    Draws,
    Part,
    RecordedCall,
    WatchedModule,
)
from localprop.engine.saved_tensor_hooks import has_saved_tensor_hooks
from localprop.errors import BadInput
from localprop.network.attributes import Kept, Snapshot, list_mappings, read_attributes
from localprop.network.recomputed import Recomputed, RerunCall
from localprop.schedule.randomness import SeededGenerators
from localprop.tasks.batch import Batch

# Numbers that are summed at once; those of a sample, and of how many tensors one is taken.
_PART, _SAMPLE, _SAMPLED = 2**13, 16, 3
# The number of the chain of each call that is in no stretch.
_ALONE = -1


def make_recompute(plan: StepPlan, model: nn.Module, recomputed: Recomputed) -> Recompute | None:
    """What runs the calls of the recomputed layers again, if there are any in this part of a step.

    Args:
        plan: of the step.
        model: the primary network.
        recomputed: the layers.
    """
    wiring, segments = plan.wiring, plan.stage.segments
    calls = [*recomputed.list_calls(wiring.layers, wiring.list_spans(segments))]
    if not calls:
        return None
    starts = (wiring.encoders_at(segment) for segment in segments)
    encoders = [encoder for own in starts if own is not None for encoder in own]
    return Recompute(model, calls, encoders, plan.generators, plan.device_type)


class Recompute:
    """Runs calls again.

    Args:
        model: the primary network.
        calls: those to run again.
        encoders: auxiliary networks all of whose calls run again.
        generators: torch's.
        device_type: of the device that the step runs on.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: list[RerunCall],
        encoders: Sequence[nn.Module],
        generators: SeededGenerators,
        device_type: str,
    ) -> None:
        self._model, self._generators = model, generators
        self._device_types = tuple(dict.fromkeys((device_type, "cpu")))
        self._watched: dict[nn.Module, WatchedModule] = {}
        self._places: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for call, path in calls:
            watched = self._watch(call.name, model.get_submodule(call.name))
            watched.paths[call.number] = path
            if call.is_overwritten:
                watched.copied.add(call.number)
            self._places[path[0]].append((call.name, call.number))
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
        # The calls of this forward that began a frame, by name and number.
        self.begun: list[tuple[str, int]] = []
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

    def begin_forward(self, batch: Batch) -> None:
        """A forward begins."""
        self.begun.clear()
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
        path = watched.paths.get(watched.count) if watched.paths else (_ALONE,)
        if path is None or not torch.is_grad_enabled() or has_saved_tensor_hooks():
            return
        before = watched.attributes.read(), None if self._trusts else watched.draws.read()
        copied = watched.count in watched.copied
        arguments = self._continue(path[0], args, kwargs, copied=copied)
        assert self._chain is not None
        chain = self._chain[0]
        if not chain.calls:
            self.begun.append(watched.place)
        autocast = Autocast.read(self._device_types)
        chain.calls.append(RecordedCall(watched, watched.count, arguments, autocast, path))
        self._open = watched, *before

    def _continue(
        self, number: int, args: tuple[Any, ...], kwargs: Any, *, copied: bool
    ) -> Arguments:
        """Begin a call in the frame that is open if it continues that, and else in a new one."""
        if self._chain is not None and self._chain[0].number == number:
            with suppress(NotContinued):
                return self._chain[1].begin(args, kwargs, copied=copied)
        chain = Chain(number)
        frame = Frame(self._parameters, partial(self._run_again, chain))
        self._chain = chain, frame
        arguments = frame.begin(args, kwargs, copied=copied)
        before, self._outputs = self._outputs, None
        if before is not None and not before[0].has_run:
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
        call = chain.calls[-1]
        call.places = frame.places
        may_rerun = not call.arguments.are_overwritten()
        if not may_rerun:
            watched.copied.add(call.number)
        try:
            if draws is not None:
                call.draws = watched.draws.find_draws(draws)
            call.changes = watched.attributes.find_changes(attributes)
        except LookupError:
            may_rerun = False
        places = self._places.get(chain.number, [watched.place])
        saved = frame.find_saved()
        # Of calls that run again together, what the first may drop decides nothing.
        if may_rerun and (len(places) > 1 or saved.gain > 0):
            self._drop(call, saved, is_last=watched.place == places[-1])
        else:
            chain.calls.pop()
            self._chain = None

    def _drop(self, call: RecordedCall, saved: Saved, *, is_last: bool) -> None:
        """Drop what a call has saved."""
        assert self._chain is not None
        chain, _ = self._chain
        if not self._trusts:
            known = call.number in call.watched.compared
            dropped = saved.dropped if is_last else [*saved.dropped, *saved.outputs]
            call.sums = None if known and not self._compares_all else sum_up(dropped)
            call.samples = take_samples(dropped)
        for held in saved.dropped:
            held.drop()
        if is_last:
            self._outputs, self._chain = (chain, [*map(weakref.ref, saved.outputs)]), None
        else:
            for held in saved.outputs:
                held.drop()

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

    def _run_again(self, chain: Chain, frame: Frame, held: Held) -> None:
        if self._peeked is not None:
            self._peeked.append(chain)
            return
        while held.tensor is None:  # a part that ends with an inner one has not filled that
            self._run_part(chain, frame, chain.take_part(held.number))

    def _run_part(self, chain: Chain, frame: Frame, part: Part) -> None:
        if any(call.arguments.are_overwritten() for call in part.calls):
            raise BadInput(
                f"{part} cannot run again: something wrote into its arguments after it had "
                "returned. Leave it out of recompute=."
            )
        filled = part.list_filled()
        attributes: list[Kept] = []
        if any(call.sums is not None for call in filled):
            attributes = read_attributes(list_mappings(self._model.modules()))
        again = SecondRun(frame, [call.places for call in filled], chain.complete)
        self._running.append(chain)
        try:
            with again.watch():
                chain.run(part, again)
        except OtherRun as error:
            raise BadInput(f"{part} did other things when it ran again: {error}.") from error
        finally:
            self._running.pop()
        _compare(part, frame, attributes)


def _compare(part: Part, frame: Frame, attributes: list[Kept]) -> None:
    """Compare a second run with the first."""
    for call in part.list_filled():
        held = frame.list_held(call.places)
        sums = call.sums or {}
        again = sum_up(held) if sums else {}
        pairs = [(numbers, sums[place]) for place, numbers in again.items() if place in sums]
        pairs += [
            (sample_of(each), call.samples[each.number])
            for each in held
            if each.number in call.samples
        ]
        if not all(_are_near(one, two) for one, two in pairs):
            raise BadInput(
                f"{part} gave other values when it ran again: it reads something that is neither "
                "among its arguments nor an attribute of its own, and that has changed meanwhile. "
                "Leave it out of recompute=."
            )
        call.watched.compared.add(call.number)
    changed = [kept.key for kept in attributes if kept.has_changed()]
    if changed:
        raise BadInput(
            f"{part} changes {', '.join(map(repr, changed))} outside of itself, and did so "
            "twice when it ran again. Leave it out of recompute=."
        )


def sum_up(saved: Iterable[Held]) -> dict[int, Tensor]:
    """Sums of saved tensors, by place."""
    tensors = {held.number: held.tensor for held in saved if held.tensor is not None}
    return {place: _sum(tensor) for place, tensor in tensors.items() if _counts(tensor)}


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


def take_samples(saved: Sequence[Held]) -> dict[int, Tensor]:
    """A few numbers of the last of some saved tensors, by place.

    They depend on most of what the call has read, so they are compared at each second run.
    """
    telling = (held for held in reversed(saved) if _tells(held))
    return {held.number: sample_of(held) for held in islice(telling, _SAMPLED)}


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
