"""Random state as a function of the place in training, so that dropout draws the same on every placement and after a resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*place: object) -> int:
    """A 63-bit seed for a place, such as (seed, step, "F", segment, micro-batch)."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest()) >> 1


class Generators:
    """torch's default generators of the CPU and, if the model is on an accelerator, of that device."""

    def __init__(self, device: torch.device) -> None:
        self._all = [torch.default_generator]
        if device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            index = torch.cuda.current_device() if device.index is None else device.index
            self._all.append(torch.cuda.default_generators[index])

    def seed(self, *place: object) -> None:
        """Seed them for a place. (torch.manual_seed would do too, but formats a stack trace where CUDA is not in use.)"""
        seed = seed_of(*place)
        for generator in self._all:
            generator.manual_seed(seed)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Leave the caller's random state as it was."""
        states = [generator.get_state() for generator in self._all]
        try:
            yield
        finally:
            for generator, state in zip(self._all, states, strict=True):
                generator.set_state(state)
