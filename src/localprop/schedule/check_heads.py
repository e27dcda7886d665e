"""Run heads and losses once on fake tensors: what cannot work is refused before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from localprop.errors import BadInput, check
from localprop.network.fake_tensors import VALUES_READ, FakeMode, quiet_fakes
from localprop.network.find_layers import look_again
from localprop.network.layers import Layers
from localprop.network.untouched import untouched
from localprop.rule.local_loss import LossInputs
from localprop.schedule.fingerprint import take_fingerprint
from localprop.schedule.wiring import Objective, Wiring
from localprop.tasks.batch import Batch


def check_heads(wiring: Wiring, batch: Batch) -> None:
    """Run the auxiliary network and the loss at each module's end on features of a batch's shape.

    Losses that need a module's graph, or inner outputs of it, are left out.

    Args:
        wiring: knows them.
        batch: only shapes, dtypes and whole numbers count.

    Raises:
        BadInput: some of them do not work; with all reasons.
    """
    layers = look_again(wiring.layers, wiring.task.forward, batch)
    objectives = list(_list_different(wiring, layers, batch))
    heads = nn.ModuleList(wiring.head(objective) for objective in objectives)
    mode = FakeMode(heads.parameters())
    with untouched(heads), quiet_fakes():
        problems = [
            problem
            for objective in objectives
            for problem in _find_problems(wiring, objective, layers, batch, mode)
        ]
    check(dict.fromkeys(problems))  # many modules, one reason


def _list_different(wiring: Wiring, layers: Layers, batch: Batch) -> Iterator[Objective]:
    """The objectives to run, of equal ones on equal features the first."""
    seen: set[object] = set()
    for objective in wiring.objectives:
        if objective.second_order or objective.taps:
            continue
        fingerprint = take_fingerprint(wiring.head(objective), weights=False)
        features = _find_features(wiring, objective, layers, batch)
        key = fingerprint, features, _find_module_input(wiring, objective, layers, batch)
        try:
            known = key in seen
            seen.add(key)
        except TypeError:  # the head holds something that has no hash
            known = False
        if not known:
            yield objective


def _find_problems(
    wiring: Wiring, objective: Objective, layers: Layers, batch: Batch, mode: FakeMode
) -> Iterator[str]:
    head, features = wiring.head(objective), _find_features(wiring, objective, layers, batch)
    fakes = batch.map(lambda tensor: mode.enter(tensor, batch.inputs.device))
    first = _find_module_input(wiring, objective, layers, batch)
    inputs = LossInputs(
        fakes.inputs,
        fakes.targets,
        fakes.inputs if first is None else _make(mode, first, batch),
        batch=fakes.data,
    )
    entered = _make(mode, features, batch)
    try:
        with mode:
            head["loss"](entered, head["aux"], inputs)
    except BadInput as error:
        yield from error.problems
    except VALUES_READ:  # a loss that looks at values, as that of CTC does: fakes cannot tell
        return
    except Exception as error:
        yield _describe(wiring, objective, features, batch, error)


class _Features(NamedTuple):
    shape: torch.Size
    dtype: torch.dtype


def _find_features(wiring: Wiring, objective: Objective, layers: Layers, batch: Batch) -> _Features:
    """What a loss sees: the output of its module, or of the network."""
    if objective.segment == len(wiring.segments) - 1:
        shape = layers.shape_for(layers.output_shape, layers.output_growth, batch.samples)
        return _Features(shape, layers.output_dtype)
    return _find_output(layers, wiring.segments[objective.segment].layers[-1], batch)


def _find_output(layers: Layers, layer: int, batch: Batch) -> _Features:
    shape = layers.shape_for(layers.shapes[layer], layers.growths[layer], batch.samples)
    return _Features(shape, layers.dtypes[layer])


def _find_module_input(
    wiring: Wiring, objective: Objective, layers: Layers, batch: Batch
) -> _Features | None:
    """What enters the module of a loss; None if that is the network's input."""
    module = wiring.segments[objective.segment].module
    first = wiring.segments[wiring.segments_of(module)[0]].layers[0]
    return _find_output(layers, first - 1, batch) if first else None


def _make(mode: FakeMode, features: _Features, batch: Batch) -> Tensor:
    like = torch.empty(features.shape, dtype=features.dtype, device="meta")
    return mode.make_fake(like, batch.inputs.device).requires_grad_()


def _describe(
    wiring: Wiring, objective: Objective, features: _Features, batch: Batch, error: Exception
) -> str:
    module = wiring.segments[objective.segment].module
    reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    if batch.samples == 1:
        return (
            f"The loss of module {module} does not work on a batch of one sample ({reason}): "
            "leave such a batch out, as DataLoader(drop_last=True) does."
        )
    if objective.segment == len(wiring.segments) - 1:
        return (
            f"The task's loss does not fit outputs of shape {tuple(features.shape)} ({reason}): "
            "give the learner another task=."
        )
    return (
        f"The auxiliary network or loss of module {module} does not work on features of shape "
        f"{tuple(features.shape)} ({reason}): give the rule another aux= or loss=, or cut "
        "elsewhere."
    )
