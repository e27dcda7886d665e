"""Random state as a function of the position in training.

Dropout then draws the same numbers on every placement of segments on ranks, when a segment is
recomputed, and after a run is resumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b

import torch
from torch import Tensor

from localprop.schedule import process_wide

# What random draws depend on, besides the seed and the step: of which forward or loss they are.
Draw = tuple[str | int, ...]


def derive_seed(*key: object) -> int:
    """A 63-bit seed from a key, such as (seed, step, "F", segment, micro-batch)."""
    return _hash(repr(key))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1


def derive_seeds(seed: int, step: int, draws: Mapping[Draw, str]) -> dict[Draw, int]:
    """The seeds of a step: all at once, which is faster than one by one between actions.

    Args:
        seed: of the run.
        step: its number.
        draws: the draws, each with its text as `repr` gives it.
    """
    # The same text as that of the tuple (seed, step, *draw), of which only the beginning is new.
    begin = f"({seed!r}, {step!r}, "
    return {draw: _hash(begin + text[1:]) for draw, text in draws.items()}


class SeededGenerators:
    """torch's default generators of the CPU and, if the model is on one, of the accelerator."""

    def __init__(self, device: torch.device) -> None:
        self._all = [torch.default_generator]
        if device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            index = torch.cuda.current_device() if device.index is None else device.index
            self._all.append(torch.cuda.default_generators[index])

    def seed(self, seed: int) -> None:
        """Seed all generators."""
        # torch.manual_seed would do the same, but it formats a stack trace while CUDA is not
        # initialised, at each of a step's many calls.
        for generator in self._all:
            generator.manual_seed(seed)

    def read(self) -> list[Tensor]:
        """The states of all generators."""
        return [generator.get_state() for generator in self._all]

    def write(self, states: Iterable[Tensor]) -> None:
        """Put all generators into states that `read` has given."""
        for generator, state in zip(self._all, states, strict=True):
            generator.set_state(state)

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Restore the caller's random state at the end of a step; other threads wait."""
        with process_wide.generators_lock:
            process_wide.has_trained = True
            states = self.read()
            try:
                yield
            finally:
                self.write(states)
