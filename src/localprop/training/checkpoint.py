"""Save a learner and go on later: one file, every entry keyed by the name of a parameter.

An optimizer's state is kept as `state.<parameter>.<field>` and `group.<parameter>.<hyperparameter>`, so that it does not
depend on how parameters are grouped into optimizers, segments or processes: what several ranks have saved, one can load.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localprop.errors import BadInput, RunFailed, check
from localprop.learner import Learner
from localprop.step.optimizers import same

FORMAT = "localprop checkpoint"
VERSION = 1
_PARTS = ("model", "heads", "encoders")
_NO_HYPERPARAMETERS = ("params", "param_names")
_SHOWN = 8  # names per problem; a wrong model differs in hundreds

State = dict[str, Any]
_Saved = dict[str, dict[str, State]]


def state_of(learner: Learner) -> State | None:
    """A copy, on the CPU, of all that a learner's next step depends on.

    Returns:
        "model", "heads" and "encoders": their state dicts; "optimizer": by parameter name; "steps": the steps done, which
        random draws depend on. On several ranks, which must all call this, rank 0 gets the whole and the others None.

    Raises:
        BadInput: an optimizer that owns parameters which are not the learner's.

    Example:
        >>> sorted(state_of(learner))
        ['encoders', 'heads', 'model', 'optimizer', 'steps']
    """
    learner.flush()
    names = _names(learner)
    optimizer: State = {}
    for each in learner.optimizers:
        for group in each.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                optimizer |= {f"state.{name}.{key}": value for key, value in each.state.get(parameter, {}).items()}
                optimizer |= {f"group.{name}.{key}": group[key] for key in group if key not in _NO_HYPERPARAMETERS}
    parts = {part: _own(learner, part) for part in _PARTS} | {"optimizer": optimizer}
    entries = learner.merged({(part, name): _copy(value) for part, own in parts.items() for name, value in own.items()})
    if entries is None:
        return None
    whole = {part: {name: value for (of, name), value in entries.items() if of == part} for part in parts}
    return whole | {"steps": learner.steps}


def restore(learner: Learner, state: Mapping[str, Any]) -> None:
    """Bring a learner to a state of :func:`state_of`; its next step is bit-equal to that of the learner it came from.

    Each rank takes what it trains. The learner may group parameters into other optimizers; its parameters, the kind of its
    optimizers and its seed must be the same.

    Raises:
        BadInput: names that are missing or unexpected, shapes that differ, other optimizers; nothing is changed then.

    Example:
        >>> restore(learner, state_of(learner))
    """
    check(_form_problems(state))
    check(problem for part in _PARTS for problem in _part_problems(part, _module(learner, part), state[part]))
    names, saved = _names(learner), _by_parameter(state["optimizer"])
    check(_optimizer_problems(learner.optimizers, names, saved))
    learner.flush()
    for part in _PARTS:
        module = _module(learner, part)
        held = [name for name in state[part] if learner.pipeline is None or learner.pipeline.holds(part, name)]
        module.load_state_dict({name: state[part][name] for name in held}, strict=False)
    for optimizer in learner.optimizers:
        optimizer.load_state_dict(_packed(optimizer, names, saved))
    learner.steps = state["steps"]


def save(
    path: str | Path, learner: Learner, epoch: int = 0, others: Mapping[str, Learner] = MappingProxyType({})
) -> None:
    """Write all that a learner's next step depends on to a file, which is either complete or as it was before.

    Of several ranks, which must all call this, rank 0 writes. To use a network, `learner.network.state_dict()` is enough.

    Args:
        path: the file.
        learner: what to save.
        epoch: the epochs done.
        others: the learners of other methods on the same network, by method, of a run in phases.

    Raises:
        RunFailed: the file cannot be written.

    Example:
        >>> save("last.pt", learner, epoch=3)
    """
    path = Path(path)
    state = state_of(learner)
    if state is None:
        return
    whole = {"format": FORMAT, "version": VERSION, "epoch": epoch} | state
    if others:  # the network is one, and kept once
        whole["others"] = {method: (state_of(other) or {}) | {"model": {}} for method, other in others.items()}
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(whole, file)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of a full disk
        raise RunFailed(f"The checkpoint {path} cannot be written ({_first_line(error)}): check the disk.") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path, learner: Learner, others: Mapping[str, Learner] = MappingProxyType({})) -> int:
    """Read a file of :func:`save` into a learner and, of a run in phases, those of its other methods.

    Returns:
        The epochs done.

    Raises:
        BadInput: no such file, no checkpoint, a damaged one, or one of another learner; nothing is changed then.

    Example:
        >>> save("last.pt", learner, epoch=3)
        >>> load("last.pt", learner)
        3
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"There is no file {path}: check the path.")
    try:
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can fail anywhere in the unpickler
        raise BadInput(
            f"{path} cannot be read as a checkpoint ({_first_line(error)}): it is damaged, or none of localprop's."
        ) from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise BadInput(f"{path} is no checkpoint of a localprop run: name a file that localprop.training saved.")
    if whole.get("version") != VERSION or not isinstance(whole.get("epoch"), int):
        raise BadInput(
            f"{path} has version {whole.get('version')!r}, but this localprop reads version {VERSION}: use the localprop "
            "that wrote it."
        )
    states = whole.get("others", {})
    try:
        check(_difference("phases", [m for m in others if m not in states], [m for m in states if m not in others]))
        restore(learner, whole)
        for method, other in others.items():
            restore(other, states[method] | {"model": whole["model"]})
    except BadInput as error:
        raise BadInput([f"{path}: {problem}" for problem in error.problems]) from error
    epoch: int = whole["epoch"]
    return epoch


# --- the parts of a learner -----------------------------------------------------------------------------------------


def _module(learner: Learner, part: str) -> nn.Module:
    module: nn.Module = getattr(learner, part)
    return module


def _own(learner: Learner, part: str) -> Mapping[str, Any]:
    """The entries of a part's state dict that are trained here."""
    module = _module(learner, part)
    return learner.pipeline.own(part, module) if learner.pipeline else module.state_dict()


def _names(learner: Learner) -> dict[int, str]:
    """The names of the learner's parameters by id, among which are all that its optimizers own."""
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    owned = [p for optimizer in learner.optimizers for group in optimizer.param_groups for p in group["params"]]
    foreign = sum(id(parameter) not in names for parameter in owned)
    if foreign:
        raise BadInput(
            f"The optimizer owns {foreign} parameter(s) that are not the learner's, which cannot be named in a checkpoint: "
            "give them an optimizer of their own."
        )
    return names


def _by_parameter(entries: Mapping[str, Any]) -> _Saved:
    """Of each parameter what is kept as "state" and as "group"."""
    saved: _Saved = {}
    for key, value in entries.items():
        kind, _, rest = key.partition(".")
        name, _, entry = rest.rpartition(".")
        saved.setdefault(name, {"state": {}, "group": {}}).setdefault(kind, {})[entry] = value
    return saved


def _packed(optimizer: Optimizer, names: Mapping[int, str], saved: _Saved) -> State:
    """What an optimizer of torch's loads: state by the number of a parameter, hyperparameters by group."""
    state: dict[int, State] = {}
    groups: list[State] = []
    number = 0
    for group in optimizer.param_groups:
        known = [saved.get(names[id(parameter)], {"state": {}, "group": {}}) for parameter in group["params"]]
        numbers = range(number, number + len(known))
        number += len(known)
        state |= {n: _copied(each["state"]) for n, each in zip(numbers, known, strict=True) if each["state"]}
        hyperparameters = next((each["group"] for each in known if each["group"]), {})
        groups.append(group | _copied(hyperparameters) | {"params": list(numbers)})
    return {"state": state, "param_groups": groups}


def _copied(values: Mapping[str, Any]) -> State:
    return {key: _copy(value) for key, value in values.items()}


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else deepcopy(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- what can be wrong ----------------------------------------------------------------------------------------------


def _form_problems(state: Mapping[str, Any]) -> Iterator[str]:
    for part in (*_PARTS, "optimizer"):
        if not isinstance(state.get(part), Mapping):
            yield f"The part {part!r} is missing from the state: take one of state_of(learner)."
    if not isinstance(state.get("steps"), int):
        yield "The number of steps is missing from the state: take one of state_of(learner)."


def _part_problems(part: str, module: nn.Module, saved: Mapping[str, Any]) -> Iterator[str]:
    own = module.state_dict()
    yield from _difference(
        part, [name for name in own if name not in saved], [name for name in saved if name not in own]
    )
    for name in own.keys() & saved.keys():
        here, there = (tuple(getattr(value, "shape", ())) for value in (own[name], saved[name]))
        if here != there:
            yield f"{part}: {name} has shape {there} in the checkpoint, but {here} here: build the same model."


def _difference(what: str, missing: list[str], unexpected: list[str]) -> Iterator[str]:
    fix = "resume with the model, modules and method that it was saved with."
    if missing:
        yield f"{what}: the checkpoint lacks {_some(missing)}: {fix}"
    if unexpected:
        yield f"{what}: the checkpoint also has {_some(unexpected)}, which are not here: {fix}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _optimizer_problems(optimizers: list[Optimizer], names: Mapping[int, str], saved: _Saved) -> Iterator[str]:
    absent: list[str] = []
    lacking: dict[str, str] = {}
    mixed: dict[str, None] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            known = {
                names[id(p)]: saved.get(names[id(p)], {}).get("group", {}) for p in group["params"] if p.requires_grad
            }
            absent += [name for name, own in known.items() if not own]
            given = [own for own in known.values() if own]
            lacking |= {key: type(optimizer).__name__ for own in given for key in optimizer.defaults if key not in own}
            mixed |= dict.fromkeys(key for own in given for key in own if not same(own[key], given[0].get(key)))
    if absent:
        yield f"optimizer: the checkpoint lacks {_some(absent)}: let the same parameters require gradients."
    for kind in dict.fromkeys(lacking.values()):
        wanted = _some([key for key in lacking if lacking[key] == kind])
        yield f"optimizer: the checkpoint has no {wanted}, which {kind} needs: resume with the optimizer of its run."
    if mixed:
        yield (
            f"optimizer: parameters of one group here had different values of {_some([*mixed])}: give each value a group, "
            "as in its run."
        )
