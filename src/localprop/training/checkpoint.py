"""Save a learner to a file and restore it later. Every entry has the name of a parameter.

The state of an optimizer is kept as `state.<parameter>.<field>` and
`group.<parameter>.<hyperparameter>`. It therefore does not depend on how parameters are grouped
into optimizers, segments or processes: one process can load what several ranks have saved.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localprop.errors import BadInput, RunFailed, check
from localprop.learner import Learner
from localprop.training.checkpoint_problems import (
    COMPONENTS,
    OptimizerStates,
    find_form_problems,
    find_name_problems,
    find_optimizer_problems,
    find_tensor_problems,
)

FORMAT = "localprop checkpoint"
VERSION = 1

# Entries of a parameter group that are no hyperparameters.
_PARAMETER_LISTS = ("params", "param_names")

StateDict = dict[str, Any]


def state_of(learner: Learner) -> StateDict | None:
    """Copy to the CPU everything that a learner's next step depends on.

    Returns:
        "model", "heads" and "encoders", the state dicts of the three; "optimizer", by the names of
        parameters; "steps", the number of steps done, which random draws depend on. On several
        ranks all must call this; rank 0 gets the whole state and the others None.

    Raises:
        BadInput: an optimizer owns parameters that are not the learner's.

    Example:
        >>> sorted(state_of(learner))
        ['encoders', 'heads', 'model', 'optimizer', 'steps']
    """
    learner.flush()
    local = {name: _select_local_entries(learner, name) for name in COMPONENTS}
    local["optimizer"] = _collect_optimizer_entries(learner)
    entries = learner.merge(
        {
            (component, name): _copy_to_cpu(value)
            for component, values in local.items()
            for name, value in values.items()
        }
    )
    if entries is None:
        return None
    state: StateDict = {component: {} for component in local}
    for (component, name), value in entries.items():
        state[component][name] = value
    return state | {"steps": learner.steps}


def restore(learner: Learner, state: Mapping[str, Any]) -> None:
    """Bring a learner to a state of `state_of`. Its next step is then equal to the bit.

    Each rank takes the entries that it holds. The learner may group its parameters into other
    optimizers, but its parameters, the types of its optimizers and its seed must be the same.

    Raises:
        BadInput: names are missing or unexpected, shapes differ, or the optimizers differ. The
            learner is then unchanged.

    Example:
        >>> restore(learner, state_of(learner))
    """
    check(find_form_problems(state))
    check(
        problem
        for component in COMPONENTS
        for problem in find_tensor_problems(
            component, _module_of(learner, component), state[component]
        )
    )
    names, saved = _name_parameters(learner), _group_by_parameter(state["optimizer"])
    check(find_optimizer_problems(learner.optimizers, names, saved))
    learner.flush()
    for component in COMPONENTS:
        entries = {
            name: value
            for name, value in state[component].items()
            if learner.pipeline is None or learner.pipeline.holds(component, name)
        }
        _module_of(learner, component).load_state_dict(entries, strict=False)
    for optimizer in learner.optimizers:
        optimizer.load_state_dict(_build_optimizer_state(optimizer, names, saved))
    learner.steps = state["steps"]


def save(
    path: str | Path,
    learner: Learner,
    epoch: int = 0,
    others: Mapping[str, Learner] = MappingProxyType({}),
) -> None:
    """Write everything that a learner's next step depends on to a file.

    A failure leaves the old file unchanged. On several ranks all must call this, and rank 0 writes.
    To use a network without training it further, `learner.network.state_dict()` is enough.

    Args:
        path: the file.
        learner: the learner to save.
        epoch: the number of epochs done.
        others: in a run in phases, the learners of the other methods, by method.

    Raises:
        RunFailed: the file cannot be written.

    Example:
        >>> save("last.pt", learner, epoch=3)
    """
    state = state_of(learner)
    if state is None:
        return
    content = {"format": FORMAT, "version": VERSION, "epoch": epoch} | state
    if others:  # all learners share the network, which the file keeps once
        content["others"] = {
            method: (state_of(other) or {}) | {"model": {}} for method, other in others.items()
        }
    _write(Path(path), content)


def load(
    path: str | Path, learner: Learner, others: Mapping[str, Learner] = MappingProxyType({})
) -> int:
    """Restore a learner from a file of `save`, and in a run in phases the other learners.

    Returns:
        The number of epochs done.

    Raises:
        BadInput: the file is absent, damaged, no checkpoint, or of another learner. The learner is
            then unchanged.

    Example:
        >>> save("last.pt", learner, epoch=3)
        >>> load("last.pt", learner)
        3
    """
    path = Path(path)
    content = _read(path)
    states = content.get("others", {})
    try:
        check(find_name_problems("phases", others, states))
        restore(learner, content)
        for method, other in others.items():
            restore(other, states[method] | {"model": content["model"]})
    except BadInput as error:
        raise BadInput([f"{path}: {problem}" for problem in error.problems]) from error
    epoch: int = content["epoch"]
    return epoch


# --- files ----------------------------------------------------------------------------------------


def _write(path: Path, content: StateDict) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch raises a RuntimeError when the disk is full
        raise RunFailed(
            f"The checkpoint {path} cannot be written ({_first_line_of(error)}): check the disk."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> StateDict:
    if not path.is_file():
        raise BadInput(f"There is no file {path}: check the path.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler can raise anything on a foreign file
        raise BadInput(
            f"{path} cannot be read as a checkpoint ({_first_line_of(error)}): it is damaged, or "
            "not a file of localprop."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadInput(
            f"{path} is no checkpoint of a localprop run: name a file that localprop.training "
            "saved."
        )
    if content.get("version") != VERSION or not isinstance(content.get("epoch"), int):
        raise BadInput(
            f"{path} has version {content.get('version')!r}, but this localprop reads version "
            f"{VERSION}: use the localprop that wrote it."
        )
    return content


def _first_line_of(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- modules --------------------------------------------------------------------------------------


def _module_of(learner: Learner, component: str) -> nn.Module:
    return learner.trained_modules()[component]


def _select_local_entries(learner: Learner, component: str) -> Mapping[str, Any]:
    """The entries of a component's state dict that this process trains."""
    module = _module_of(learner, component)
    if learner.pipeline:
        return learner.pipeline.select_owned_entries(component, module)
    return module.state_dict()


# --- optimizers -----------------------------------------------------------------------------------


def _name_parameters(learner: Learner) -> dict[int, str]:
    """The names of the learner's parameters, by `id`."""
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    groups = [group for optimizer in learner.optimizers for group in optimizer.param_groups]
    foreign = sum(id(parameter) not in names for group in groups for parameter in group["params"])
    if foreign:
        raise BadInput(
            f"The optimizer owns {foreign} parameter(s) that are not the learner's, which have no "
            "name in a checkpoint: give them an optimizer of their own."
        )
    return names


def _collect_optimizer_entries(learner: Learner) -> StateDict:
    """The state and hyperparameters of all parameters, with a key for each entry."""
    names = _name_parameters(learner)
    entries: StateDict = {}
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            hyperparameters = [key for key in group if key not in _PARAMETER_LISTS]
            for parameter in group["params"]:
                name = names[id(parameter)]
                for key, value in optimizer.state.get(parameter, {}).items():
                    entries[f"state.{name}.{key}"] = value
                for key in hyperparameters:
                    entries[f"group.{name}.{key}"] = group[key]
    return entries


def _group_by_parameter(entries: Mapping[str, Any]) -> OptimizerStates:
    """Group the entries of all optimizers by parameter, then by "state" and "group"."""
    saved: OptimizerStates = {}
    for key, value in entries.items():
        # The name of a parameter has dots itself: the first and the last dot of the key count.
        source, _, rest = key.partition(".")
        name, _, field = rest.rpartition(".")
        saved.setdefault(name, {"state": {}, "group": {}}).setdefault(source, {})[field] = value
    return saved


def _build_optimizer_state(
    optimizer: Optimizer, names: Mapping[int, str], saved: OptimizerStates
) -> StateDict:
    """Build what `Optimizer.load_state_dict` takes: state by number, hyperparameters by group."""
    state: dict[int, StateDict] = {}
    groups: list[StateDict] = []
    number = 0  # torch counts the parameters of an optimizer through all its groups
    for group in optimizer.param_groups:
        hyperparameters: StateDict = {}
        numbers = []
        for parameter in group["params"]:
            entries = saved.get(names[id(parameter)], {"state": {}, "group": {}})
            if entries["state"]:
                state[number] = _copy_all_to_cpu(entries["state"])
            # All parameters of a group have the same values, or find_optimizer_problems objects.
            hyperparameters = hyperparameters or entries["group"]
            numbers.append(number)
            number += 1
        groups.append(group | _copy_all_to_cpu(hyperparameters) | {"params": numbers})
    return {"state": state, "param_groups": groups}


def _copy_all_to_cpu(values: Mapping[str, Any]) -> StateDict:
    return {key: _copy_to_cpu(value) for key, value in values.items()}


def _copy_to_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else deepcopy(value)
