"""Whether random draws decide what runs: layers that are skipped at random (LayerDrop).

A forward runs twice, once with the smallest and once with the largest value that draws may have.
Where it calls other modules then, draws decide.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy

EXTREMES = (0.0, 1 - 2**-24)  # the largest float32 below 1


@contextmanager
def constant_draws(value: float | None) -> Iterator[None]:
    """Within the context, uniform draws of Python and numpy have one value, if it is not None."""
    with ExitStack() as stack:
        if value is not None:
            _patch_python(stack, value)
            _patch_numpy(stack, value)
        yield


def read_states() -> object:
    """The states of the random generators of Python and numpy, to see whether somebody draws."""
    return random.getstate(), str(numpy.random.get_state(legacy=True))


def _patch_python(stack: ExitStack, value: float) -> None:
    def draw() -> float:
        return value

    stack.enter_context(mock.patch.object(random, "random", draw))
    # The other functions of the module are methods of one object, and draw by this one.
    instance = random.uniform.__self__  # type: ignore[attr-defined]
    stack.enter_context(mock.patch.object(instance, "random", draw))


def _patch_numpy(stack: ExitStack, value: float) -> None:
    def fill(size: Any = None) -> Any:
        return value if size is None else numpy.full(size, value)

    def rand(*size: int) -> Any:
        return fill(size or None)

    def uniform(low: float = 0.0, high: float = 1.0, size: Any = None) -> Any:
        return low + (high - low) * fill(size)

    for name in ("random", "random_sample", "ranf", "sample"):
        stack.enter_context(mock.patch.object(numpy.random, name, fill))
    stack.enter_context(mock.patch.object(numpy.random, "rand", rand))
    stack.enter_context(mock.patch.object(numpy.random, "uniform", uniform))
