"""A look at a model that leaves no trace: its state is put back afterwards."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from localprop.network.copied_values import GENERATORS, read_generator, write_generator

_CONTAINERS = (list, dict, set, OrderedDict, deque)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within the context, forwards may run; then all is as it was before.

    That is: attributes of modules (modes, hooks, buffers, counters, tensors, lists and dicts), what
    requires a gradient, and the random generators of torch, Python and numpy. Within the context,
    buffers and other tensors that are no parameters are copies, so a forward may write into them.

    Example:
        >>> from torch import nn
        >>> norm = nn.BatchNorm1d(3)
        >>> with untouched(norm):
        ...     norm(torch.randn(4, 3)).shape, int(norm.num_batches_tracked)
        (torch.Size([4, 3]), 1)
        >>> int(norm.num_batches_tracked)
        0
    """
    # A momentum encoder may exchange the data of its parameters.
    required = [(p, p.requires_grad, p.data) for p in model.parameters()]
    # A module's attributes are a dict, so they are containers like those that they hold.
    containers = list(_list_containers(vars(module) for module in model.modules()))
    with _same_draws(containers):
        _replace_by_copies(containers)
        try:
            yield
        finally:
            for container, before in containers:
                _refill(container, before)
            for parameter, requires_grad, data in required:
                parameter.requires_grad_(requires_grad)
                if parameter.untyped_storage()._cdata != data.untyped_storage()._cdata:
                    parameter.data = data


def _list_containers(roots: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """All containers among the roots and what they hold, each with a copy of it."""
    waiting, seen = list(roots), set[int]()
    while waiting:
        container = waiting.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        yield container, type(container)(container)
        held = container.values() if isinstance(container, dict) else container
        waiting.extend(each for each in held if type(each) in _CONTAINERS)


def _refill(container: Any, before: Any) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(before)
    else:
        container.extend(before)


def _replace_by_copies(containers: Iterable[tuple[Any, Any]]) -> None:
    """Put a copy in the place of each tensor that is no parameter."""
    copies: dict[int, Tensor] = {}

    def copy(value: Any) -> Any:
        # A tensor with a graph is a result that the model has kept, and nothing writes into it.
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter) or value.grad_fn:
            return value
        if id(value) not in copies:
            copies[id(value)] = value.detach().clone().requires_grad_(value.requires_grad)
        return copies[id(value)]

    for container, _ in containers:
        if isinstance(container, dict):
            container.update({key: copy(value) for key, value in container.items()})
        elif not isinstance(container, set):
            _refill(container, [copy(value) for value in container])


@contextmanager
def _same_draws(containers: Iterable[tuple[Any, Any]]) -> Iterator[None]:
    """Put the random generators back: the global ones, and those that modules hold."""
    held = [
        each
        for container, _ in containers
        for each in (container.values() if isinstance(container, dict) else container)
        if isinstance(each, GENERATORS)
    ]
    states = [read_generator(each) for each in held]
    numpy_state, python_state = numpy.random.get_state(), random.getstate()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            numpy.random.set_state(numpy_state)
            random.setstate(python_state)
            for each, state in zip(held, states, strict=True):
                write_generator(each, state)
