"""The state of a learner, by the names of parameters.

The state of an optimizer is kept as `state.<parameter>.<field>` and
`group.<parameter>.<hyperparameter>`. It therefore does not depend on how parameters are grouped
into optimizers, segments or processes: one process can load what several ranks have saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from localprop.engine.optimizer_groups import PARAMETER_LISTS
from localprop.errors import BadInput, check, collect_problems
from localprop.ranks.pipeline import Pipeline
from localprop.state_problems import (
    COMPONENTS,
    OptimizerStates,
    find_form_problems,
    find_kind_problems,
    find_optimizer_problems,
    find_scaler_problems,
    find_tensor_problems,
)

StateDict = dict[str, Any]


class Trained(Protocol):
    """What a learner has that its state is made of."""

    pipeline: Pipeline | None
    steps: int

    @property
    def scaler(self) -> GradScaler:
        """Scales the losses of precision="fp16"."""

    @property
    def optimizers(self) -> list[Optimizer]:
        """All of them."""

    def flush(self) -> None:
        """Run what is still to come of the last batch."""

    def merge(self, entries: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], Any] | None:
        """The entries of all ranks, on rank 0."""

    def trained_modules(self) -> dict[str, nn.Module]:
        """Model, heads and encoders."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Their parameters by name."""


def state_of(learner: Trained) -> StateDict | None:
    """Copy to the CPU everything that a learner's next step depends on.

    Returns:
        "model", "heads" and "encoders", the state dicts of the three; "optimizer", by the names of
        parameters; "steps", the number of steps done, which random draws depend on; with
        precision="fp16" also "scaler", the scale of losses. On several ranks all must call this;
        rank 0 gets the whole state and the others None.

    Raises:
        BadInput: an optimizer owns parameters that are not the learner's.

    Example:
        >>> sorted(state_of(learner))
        ['encoders', 'heads', 'model', 'optimizer', 'steps']
    """
    learner.flush()
    local = {name: _select_local_entries(learner, name) for name in COMPONENTS}
    local["optimizer"] = _collect_optimizer_entries(learner)
    copies: dict[Any, Tensor] = {}  # tied weights have one copy
    entries = learner.merge(
        {
            (component, name): _copy_once(value, copies)
            for component, values in local.items()
            for name, value in values.items()
        }
    )
    if entries is None:
        return None
    state: StateDict = {component: {} for component in local}
    for (component, name), value in entries.items():
        state[component][name] = value
    scaler = {"scaler": learner.scaler.state_dict()} if learner.scaler.is_enabled() else {}
    return state | {"steps": learner.steps} | scaler


def find_state_problems(learner: Trained, state: Mapping[str, Any]) -> list[str]:
    """Find why a learner cannot be brought to a state, one sentence for each reason.

    Of tensors only dtypes, shapes and kinds are read.

    Example:
        >>> find_state_problems(learner, state_of(learner))
        []
    """
    problems = list(find_form_problems(state))
    if problems:
        return problems
    for component in COMPONENTS:
        module = _module_of(learner, component)
        problems += find_tensor_problems(component, module, state[component])
    problems += find_scaler_problems(learner.scaler, state.get("scaler"))
    problems += find_kind_problems("optimizer", state["optimizer"])
    with collect_problems(problems):
        names, saved = _name_parameters(learner), _group_by_parameter(state["optimizer"])
        problems += find_optimizer_problems(learner.optimizers, names, saved)
    return problems


def restore(learner: Trained, state: Mapping[str, Any]) -> None:
    """Bring a learner to a state of `state_of`. Its next step is then equal to the bit.

    Each rank takes the entries that it holds. The learner may group its parameters into other
    optimizers, but its parameters, the types of its optimizers and its seed must be the same.
    Its tensors take the memory format of the state's, on which kernels and so the last bits depend.

    Raises:
        BadInput: names are missing or unexpected, shapes or dtypes differ, a tensor is sparse or
            without data, or the optimizers differ. The learner is then unchanged.

    Example:
        >>> restore(learner, state_of(learner))
    """
    check(find_state_problems(learner, state))
    names, saved = _name_parameters(learner), _group_by_parameter(state["optimizer"])
    learner.flush()
    for component in COMPONENTS:
        entries = {
            name: value
            for name, value in state[component].items()
            if learner.pipeline is None or learner.pipeline.holds(component, name)
        }
        module = _module_of(learner, component)
        _match_layouts(module, entries)
        module.load_state_dict(entries, strict=False)
    for optimizer in learner.optimizers:
        optimizer.load_state_dict(_build_optimizer_state(optimizer, names, saved))
    if learner.scaler.is_enabled():
        learner.scaler.load_state_dict(state["scaler"])
    learner.steps = state["steps"]


def collect_by_name(learner: Trained, named: Iterable[tuple[str, nn.Parameter]]) -> StateDict:
    """What another learner of the same model can go on with: see `carry_over`.

    Args:
        learner: whose model may have changed since it was made.
        named: all of its parameters as they were then.
    """
    names = {id(parameter): name for name, parameter in named}
    return {
        "heads": learner.trained_modules()["heads"].state_dict(),
        "encoders": learner.trained_modules()["encoders"].state_dict(),
        "optimizer": dict(_list_optimizer_entries(learner.optimizers, names)),
        "shapes": {name: parameter.shape for name, parameter in named},
        "steps": learner.steps,
        "scaler": learner.scaler.state_dict(),
    }


def carry_over(before: Mapping[str, Any], learner: Trained) -> None:
    """Give a learner what another one knew, by name, where the shapes are the same.

    Args:
        before: what `collect_by_name` returned.
        learner: a new one of the same model.
    """
    state = state_of(learner)
    assert state is not None
    for component in ("heads", "encoders"):
        own = state[component]
        own |= {
            name: _copy_to_cpu(value)
            for name, value in before[component].items()
            if name in own and own[name].shape == value.shape
        }
    state["optimizer"] = dict(_list_entries_to_keep(before, learner))
    restore(learner, state | {"steps": before["steps"], "scaler": before["scaler"]})


def _list_entries_to_keep(before: Mapping[str, Any], learner: Trained) -> Iterator[tuple[str, Any]]:
    """The entries of the optimizers: the state before, and hyperparameters as a scheduler has left
    them.
    """
    names, saved = _name_parameters(learner), _group_by_parameter(before["optimizer"])
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            parameters = {names[id(parameter)]: parameter for parameter in group["params"]}
            # A parameter that was frozen before takes the hyperparameters of its new group.
            known = [saved[name]["group"] for name in parameters if name in saved]
            now = {key: value for key, value in group.items() if key not in PARAMETER_LISTS}
            hyperparameters = now | (known[0] if known else {})
            for name, parameter in parameters.items():
                for key, value in hyperparameters.items():
                    yield f"group.{name}.{key}", value
                if name in saved and before["shapes"][name] == parameter.shape:
                    for key, value in saved[name]["state"].items():
                        yield f"state.{name}.{key}", value


# --- modules --------------------------------------------------------------------------------------


def _module_of(learner: Trained, component: str) -> nn.Module:
    return learner.trained_modules()[component]


def _select_local_entries(learner: Trained, component: str) -> Mapping[str, Any]:
    """The entries of a component's state dict that this process trains."""
    module = _module_of(learner, component)
    if learner.pipeline:
        return learner.pipeline.select_owned_entries(component, module)
    return module.state_dict()


def _match_layouts(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Give tensors of a module the strides that they have in a state, such as channels last."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        there = saved.get(name)
        if not isinstance(tensor, Tensor) or not isinstance(there, Tensor) or tensor.is_meta:
            continue
        dense = torch.empty_like(tensor, device="meta").stride()
        # Strides that no dense tensor has, such as those of `expand`, are the module's own affair.
        if dense == tensor.stride() != there.stride():
            tensor.data = torch.empty_strided(
                tensor.shape, there.stride(), dtype=tensor.dtype, device=tensor.device
            ).copy_(tensor.data)


# --- optimizers -----------------------------------------------------------------------------------


def _name_parameters(learner: Trained) -> dict[int, str]:
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


def _collect_optimizer_entries(learner: Trained) -> StateDict:
    """The state and hyperparameters of all parameters, with a key for each entry."""
    return dict(_list_optimizer_entries(learner.optimizers, _name_parameters(learner)))


def _list_optimizer_entries(
    optimizers: Iterable[Optimizer], names: Mapping[int, str]
) -> Iterator[tuple[str, Any]]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            hyperparameters = [key for key in group if key not in PARAMETER_LISTS]
            for parameter in group["params"]:
                name = names.get(id(parameter))
                if name is None:  # it has joined the optimizer since
                    continue
                for key, value in optimizer.state.get(parameter, {}).items():
                    yield f"state.{name}.{key}", value
                for key in hyperparameters:
                    yield f"group.{name}.{key}", group[key]


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


def _copy_once(value: Any, copies: dict[Any, Tensor]) -> Any:
    """Copy a value to the CPU; of tensors that are one and the same, the copy made before."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.data_ptr():
        return _copy_to_cpu(value)
    key = value.device, value.data_ptr(), value.dtype, value.shape, value.stride()
    if key not in copies:
        copies[key] = _copy_to_cpu(value)
    return copies[key]


def _copy_to_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else deepcopy(value)
