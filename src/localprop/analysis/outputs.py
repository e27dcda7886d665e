"""The outputs of a learner's modules, as one forward of the deployed network shows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from localprop.engine.module_ends import running_on, visit_ends
from localprop.errors import BadInput, check
from localprop.learner import Learner
from localprop.network.modes import evaluation_mode
from localprop.network.untouched import untouched
from localprop.tasks.batch import Batch


def check_one_process(learner: Learner) -> None:
    """Refuse a learner whose network is spread over ranks.

    Raises:
        BadInput: it is on several ranks.

    Example:
        >>> check_one_process(learner)
    """
    if learner.pipeline is not None:
        raise BadInput(
            "The network is spread over several ranks, and an analysis needs all of it: save the "
            "learner with lp.save, and load it in one process."
        )


def list_module_ends(learner: Learner) -> tuple[str, ...]:
    """The name of the layer that each module ends with.

    Example:
        >>> list_module_ends(learner)
        ('2', '4', '5')
    """
    names = learner.partition.layers.names
    return tuple(names[layers[-1]] for layers in learner.partition.modules)


@contextmanager
def looking_at(learner: Learner) -> Iterator[None]:
    """Within the context the deployed network may be run, in evaluation mode and without gradients.

    Then all is as it was, the random state too.

    Example:
        >>> with looking_at(learner):
        ...     [output.shape[0] for output in read_outputs(learner, torch.randn(2, 1, 8, 8))]
        [2, 2, 2]
    """
    network = learner.network
    with untouched(network), evaluation_mode(network), torch.no_grad():
        yield


def read_outputs(learner: Learner, batch: Any) -> list[Tensor]:
    """Run the deployed network once, and read what each module returns; within `looking_at`.

    Where a module hands on several tensors, its features count: the first of them.

    Args:
        learner: in one process.
        batch: as in the sample, or only its inputs.

    Returns:
        For each module its output (N, ..., C) as float64 on the CPU, channels last. Where it is not
        known which dimension holds the channels, (N, C) with all numbers of a sample. The last one
        is the network's output.

    Raises:
        BadInput: the network does not run on the batch, does not come to the end of a module, or
            an output has no dimension of its own for the samples.
    """
    layers, wiring = learner.partition.layers, learner.wiring
    ends = [own[-1] for own in learner.partition.modules]
    places = [(layers.growths[end], layers.find_channel(end)) for end in ends[:-1]]
    places.append((layers.output_growth, layers.output_channel))
    check(
        f"The output of module {module} has no dimension for the samples alone, and an analysis "
        f"compares samples: cut elsewhere than at {layers.names[ends[module]]!r}."
        for module, (growth, _) in enumerate(places)
        if sorted(growth) != [*([0] * (len(growth) - 1)), 1]
    )
    found: dict[int, Tensor] = {}

    def keep(module: int, features: Tensor) -> None:
        growth, channel = places[module]
        found[module] = _arrange(features, growth.index(1), channel)

    entered = Batch.of(batch, wiring.task.targets(batch)).to(learner.device)
    *early, last = range(len(ends))
    with running_on(entered):
        keep(last, visit_ends(early, keep, learner.network, learner.model, wiring, entered))
    check(
        f"The forward did not come to the end of module {module} in evaluation mode: cut elsewhere."
        for module in early
        if module not in found
    )
    return [found[module] for module in range(len(ends))]


def _arrange(features: Tensor, samples: int, channel: int | None) -> Tensor:
    """Samples first, channels last; a copy, since the model may write into its features later."""
    if features.ndim == 1:
        values = features[:, None]
    elif channel is None or channel == samples:
        values = features.movedim(samples, 0).flatten(1)
    else:
        values = features.movedim((samples, channel), (0, -1))
    return values.detach().to("cpu", torch.float64, copy=True)
