"""Calls of modules that run again, and what a second run needs besides their arguments."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from localprop.engine.frames import Arguments, Returned, SecondRun, Stopped
from localprop.network.attributes import AttributeWatch, Kept, Snapshot, copy_kept, put_right
from localprop.schedule.randomness import SeededGenerators

# --- random state -------------------------------------------------------------------------------


class Draws(NamedTuple):
    """The states of the generators of torch, Python and numpy.

    Attributes:
        torch: by generator.
        python: as `random.getstate` gives it.
        numpy: as `numpy.random.get_state` gives it, or only the bytes of its generator.
    """

    torch: list[Tensor]
    python: tuple[Any, ...]
    numpy: Any

    def equal(self, other: Draws) -> bool:
        """Whether nobody has drawn between the two."""
        # Python's state is its words, the place among them, and half of a pair of normal numbers.
        ours, theirs = self.python, other.python
        return (
            ours[1][-1] == theirs[1][-1]
            and ours[1][0] == theirs[1][0]
            and ours[2] == theirs[2]
            and all(map(torch.equal, self.torch, other.torch))
            and _same_numbers(self.numpy, other.numpy)
        )


def _same_numbers(one: Any, other: Any) -> bool:
    """Whether two states of numpy's generator are the same."""
    if isinstance(one, dict):
        return all(_same_numbers(each, other[key]) for key, each in one.items())
    return bool(numpy.all(one == other)) if isinstance(one, numpy.ndarray) else one == other


class DrawWatch:
    """Watches what the calls of a module draw.

    Reading numpy's whole state takes longer than all else here, so once a call has drawn nothing
    from it, only the bytes of its generator are compared.
    """

    def __init__(self, generators: SeededGenerators) -> None:
        self._generators = generators
        # None before the first call.
        self._draws_numpy: bool | None = None

    def read(self) -> Draws:
        """The states now."""
        return Draws(self._generators.read(), random.getstate(), self._read_numpy())

    def find_draws(self, before: Draws) -> Draws | None:
        """The states before a call, if it has drawn.

        Raises:
            LookupError: it has, and the state before is not known. The next call's will be.
        """
        after = self.read()  # of the same kind as the state before: nothing has been learnt since
        drawn = not _same_numbers(before.numpy, after.numpy)
        self._draws_numpy = self._draws_numpy or drawn
        if drawn and isinstance(before.numpy, bytes):
            raise LookupError
        return None if before.equal(after) else before

    def _read_numpy(self) -> Any:
        generator = numpy.random.get_bit_generator()  # type: ignore[attr-defined]
        if self._draws_numpy is not False or not isinstance(generator, numpy.random.MT19937):
            return numpy.random.get_state(legacy=False)
        # 624 words and the place among them.
        return ctypes.string_at(generator.ctypes.state_address, 2500)

    @contextmanager
    def set_back(self, draws: Draws | None) -> Iterator[None]:
        """Within the context, all is drawn as after these states; then the caller's return."""
        if draws is None:
            yield
            return
        state = numpy.random.get_state(legacy=False)
        now = Draws(self._generators.read(), random.getstate(), state)
        self._write(draws)
        try:
            yield
        finally:
            self._write(now)

    def _write(self, draws: Draws) -> None:
        self._generators.write(draws.torch)
        random.setstate(draws.python)
        if not isinstance(draws.numpy, bytes):
            numpy.random.set_state(draws.numpy)


# --- autocast -----------------------------------------------------------------------------------


class Autocast(NamedTuple):
    """How a call casts its inputs.

    Attributes:
        modes: by type of device, whether autocast is on, and its dtype.
        cached: whether casts of weights are kept.
    """

    modes: tuple[tuple[str, bool, torch.dtype], ...]
    cached: bool

    @classmethod
    def read(cls, device_types: Iterable[str]) -> Autocast:
        """As it is now."""
        modes = (
            (each, torch.is_autocast_enabled(each), torch.get_autocast_dtype(each))
            for each in device_types
        )
        return cls(tuple(modes), torch.is_autocast_cache_enabled())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Cast like this within the context."""
        with ExitStack() as stack:
            for device_type, enabled, dtype in self.modes:
                stack.enter_context(_cast(device_type, enabled, dtype, self.cached))
            yield


def _cast(
    device_type: str, enabled: bool, dtype: torch.dtype, cached: bool
) -> AbstractContextManager[object]:
    # A disabled autocast of an unusual dtype warns, though it does nothing.
    if not enabled:
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, dtype, cache_enabled=cached)


# --- calls ----------------------------------------------------------------------------------------


class WatchedModule:
    """A module whose calls run again.

    Args:
        name: of the module.
        module: the module.
        generators: torch's.

    Attributes:
        paths: by the number of a call, the stretches that it belongs to (`RerunCall`).
        copied: the numbers of calls into whose arguments the model writes.
        count: how many calls of this forward have begun.
        compared: the numbers of calls whose second run has been compared with the first.
        runs_to_end: whether calls do something after the last tensor that they save: they count
            down what they have counted up, or remove a hook.
    """

    def __init__(self, name: str, module: nn.Module, generators: SeededGenerators) -> None:
        self.name, self.module = name, module
        self.paths: dict[int, tuple[int, ...]] = {}
        self.copied: set[int] = set()
        self.count = 0
        self.compared = set[int]()
        self.runs_to_end = False
        self.draws, self.attributes = DrawWatch(generators), AttributeWatch(module)

    @property
    def place(self) -> tuple[str, int]:
        """The call that has begun last."""
        return self.name, self.count

    def observe(self) -> Observed:
        """What a call may still change before it returns."""
        hooks = self.attributes.count_hooks()
        return Observed(self.attributes.look(), hooks, torch.get_default_dtype())

    def differs(self, before: Observed) -> bool:
        """Whether anything has changed since."""
        now = self.attributes.count_hooks(), torch.get_default_dtype()
        return now != before[1:] or self.attributes.has_changed(before.attributes)


class Observed(NamedTuple):
    """What a call may change, at one moment."""

    attributes: Snapshot
    hooks: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class RecordedCall:
    """A call to run again.

    Attributes:
        watched: of the module.
        number: which of its calls.
        arguments: what it ran on.
        autocast: how it casts.
        draws: the random state before it, if it has drawn.
        changes: the attributes that it has changed, as they were before.
        path: the stretches that it belongs to (`RerunCall`).
        places: those of what it has saved, in its frame.
        sums: of its first run, the sums of what was dropped, by place; None if not compared.
        samples: a few numbers of the last tensors that were dropped, by place.
    """

    watched: WatchedModule
    number: int
    arguments: Arguments
    autocast: Autocast
    path: tuple[int, ...]
    draws: Draws | None = None
    changes: list[Kept] = field(default_factory=list)
    places: range = range(0)
    sums: dict[int, Tensor] | None = None
    samples: dict[int, Tensor] = field(default_factory=dict)

    def run(self, before: list[Tensor], *, is_last: bool) -> Any:
        """Run the call again.

        Args:
            before: what the call before has returned.
            is_last: whether it will not run once more.
        """
        args, kwargs = self.arguments.give(before)
        draws = self.watched.draws.set_back(self.draws)
        changes = self.changes if is_last else copy_kept(self.changes)
        with put_right(changes), draws, self.autocast.applied():
            try:
                return self.watched.module(*args, **kwargs)
            except Returned as call:
                return call.output
            except Stopped:
                return None


@dataclass(eq=False)
class Part:
    """Calls of a chain that run again at once.

    Attributes:
        calls: neighbours.
        before: what the call before them has returned.
        depth: how many stretches they are in, at least. Those that are in more run once more.
    """

    calls: list[RecordedCall]
    before: list[Tensor]
    depth: int

    def enter(self) -> list[Tensor]:
        """What the call before them has returned, for a run from there."""
        tensors = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in self.before]
        overwrites = self.calls[0].number in self.calls[0].watched.copied
        return [tensor.clone() for tensor in tensors] if overwrites else tensors

    def list_runs(self) -> list[tuple[bool, list[RecordedCall]]]:
        """Its calls, those of an inner stretch together, and whether they are of one."""
        depth = self.depth
        runs = groupby(self.calls, lambda call: call.path[: depth + 1])
        return [(len(path) > depth, [*calls]) for path, calls in runs]

    def list_filled(self) -> list[RecordedCall]:
        """Its calls that run no further time."""
        return [call for call in self.calls if len(call.path) <= self.depth]

    def __str__(self) -> str:
        return ", ".join(repr(call.watched.name) for call in self.calls)


@dataclass(eq=False)
class Chain:
    """Calls that share a frame.

    Attributes:
        number: of the outermost stretch.
        parts: what is still to run again; at first all together.
        has_run: whether something has run again.
        running: the call that runs again now.
        depth: how many calls of its module have begun and not ended: it may call itself.
        goes_on: whether a second run goes on when all is there, to the beginning of a part.
        at_completion: what was there when all was saved that is needed, if the call ran on.
    """

    number: int
    parts: list[Part] = field(default_factory=lambda: [Part([], [], depth=1)])
    has_run: bool = False
    running: RecordedCall | None = None
    depth: int = 0
    goes_on: bool = False
    at_completion: Observed | None = None

    @property
    def calls(self) -> list[RecordedCall]:
        """The calls that have begun, before anything runs again."""
        return self.parts[0].calls

    def take_part(self, place: int) -> Part:
        """The part that has saved the tensor of a place; it is the caller's from here on."""
        found = (part for part in self.parts if any(place in call.places for call in part.calls))
        part = next(found)
        self.parts.remove(part)
        self.has_run = True
        return part

    def run(self, part: Part, again: SecondRun) -> None:
        """Run the calls of a part, until all is saved that is needed."""
        returned, runs = part.enter(), part.list_runs()
        last_inner = max((i for i, (is_inner, _) in enumerate(runs) if is_inner), default=-1)
        for i, (is_inner, calls) in enumerate(runs):
            if is_inner:
                inner = Part(calls, returned, part.depth + 1)
                self.parts.append(inner)
                returned = inner.before = inner.enter()
            self.goes_on = i < last_inner
            for call in calls:
                if again.is_complete and not self.goes_on:
                    break
                self.running, self.depth = call, 0
                again.begin(call.places, keeps=not is_inner)
                leaves = tree_leaves(call.run(returned, is_last=not is_inner))
                returned = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.running = self.at_completion = None

    def complete(self) -> None:
        """All is saved that is needed: stop, unless there is still something to do."""
        assert self.running is not None
        watched = self.running.watched
        if self.running.sums is None and not watched.runs_to_end and not self.goes_on:
            raise Stopped
        self.at_completion = watched.observe()

    def list_tensors(self) -> Iterator[Tensor]:
        """What is kept for the second run."""
        for part in self.parts:
            yield from part.before
            for call in part.calls:
                yield from call.arguments.list_tensors()
                yield from (tensor for kept in call.changes for tensor in kept.list_tensors())
                yield from (*(call.sums or {}).values(), *call.samples.values())

    def enter(self, watched: WatchedModule) -> None:
        """A module begins a call, within one that runs again."""
        self.depth += self._runs(watched)

    def leave(self, watched: WatchedModule, output: Any) -> None:
        """It ends; so does the second run if it is the one that runs again."""
        if output is not None and self._runs(watched):  # None: it has failed
            self.depth -= 1
            if not self.depth:
                if self.at_completion is not None:
                    watched.runs_to_end |= watched.differs(self.at_completion)
                    self.at_completion = None
                # Users' hooks come after this one, and do not see a second return.
                raise Returned(output)

    def _runs(self, watched: WatchedModule) -> bool:
        return self.running is not None and self.running.watched is watched
