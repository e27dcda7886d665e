"""Random state as a function of the position in training.

Dropout then draws the same numbers on every placement of segments on ranks, when a segment is
recomputed, and after a run is resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

# What random draws depend on, besides the seed and the step: of which forward or loss they are.
Draw = tuple[str | int, ...]


def derive_seed(*key: object) -> int:
    """A 63-bit seed from a key, such as (seed, step, "F", segment, micro-batch)."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


def derive_seeds(seed: int, step: int, draws: Iterable[Draw]) -> dict[Draw, int]:
    """The seeds of a step: all at once, which is faster than one by one between actions."""
    return {draw: derive_seed(seed, step, *draw) for draw in draws}


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

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Restore the caller's random state at the end."""
        states = [generator.get_state() for generator in self._all]
        try:
            yield
        finally:
            for generator, state in zip(self._all, states, strict=True):
                generator.set_state(state)
