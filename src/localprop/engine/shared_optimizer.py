"""An optimizer that exists: it also trains heads and encoders, in the groups that it has.

A new group would be unknown to schedulers that were built before, and would lack the user's policy.
So each new parameter joins the group of the parameter of the network that is most like it::

    groups of the user                  a head at the end of layer 3
    0: lr 0.01, decay   layers 0-1      weights  ->  2, the matrices of layer 3
    1: lr 0.01          layers 0-1      biases   ->  3, the vectors of layer 3
    2: lr 0.10, decay   layers 2-5
    3: lr 0.10          layers 2-5
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer

from localprop.engine.optimizer_groups import PARAMETER_LISTS
from localprop.engine.user_optimizers import find_owned_parameters
from localprop.errors import BadInput
from localprop.schedule.schedule import Op
from localprop.schedule.wiring import Wiring

_LOG = logging.getLogger("localprop")
_MAX_NAMES = 5

# The parameters that an optimizer has gained. An attribute of the optimizer would not do: it would
# be saved among the hyperparameters.
_GAINED: WeakKeyDictionary[Optimizer, set[int]] = WeakKeyDictionary()


def extend_optimizer(
    optimizer: Optimizer, model: nn.Module, wiring: Wiring, unreached: Collection[str] = ()
) -> None:
    """Add the parameters of heads and encoders to the groups of an existing optimizer.

    They replace those that an earlier learner has added.

    Args:
        optimizer: may also own parameters that are not trained.
        model: the network.
        wiring: its segments, heads and encoders.
        unreached: the names of parameters that may be missing, since no gradient reaches them.

    Raises:
        BadInput: the optimizer lacks parameters of the model that are trained.
    """
    owned = find_owned_parameters(model, wiring)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    of_model = {id(p) for p in model.parameters()}
    _check_owns(
        name
        for named in owned.values()
        for name, parameter in named
        if id(parameter) in of_model - known and name not in unreached
    )
    _remove_gained(optimizer)
    choose, gained = _make_choice(optimizer, model, wiring), {}
    for step, named in owned.items():
        # Encoders stand at the beginning of their segment, and heads at its end.
        layer = wiring.segments[step.segment].layers[0 if step.op is Op.S else -1]
        for name, parameter in named:
            if id(parameter) not in of_model and id(parameter) not in gained:
                group = choose(parameter, layer)
                for key, entry in zip(PARAMETER_LISTS, (parameter, name), strict=True):
                    if key in group:
                        group[key] = [*group[key], entry]
                gained[id(parameter)] = parameter
    if gained:
        _GAINED[optimizer] = set(gained)
        count = sum(parameter.numel() for parameter in gained.values())
        _LOG.info("the optimizer has gained %d parameters, of heads and encoders", count)


@contextmanager
def exchange_parameters(
    optimizer: Optimizer | None, before: Iterable[tuple[str, nn.Parameter]], model: nn.Module
) -> Iterator[None]:
    """Put the model's parameters in the places of those that had their names before.

    A failure inside puts the old ones back.

    Args:
        optimizer: an existing one, or None.
        before: the parameters as they were, by name.
        model: the network as it is.
    """
    groups = [] if optimizer is None else optimizer.param_groups
    old = [{key: list(group[key]) for key in _lists_of(group)} for group in groups]
    names = {id(parameter): name for name, parameter in before}
    now = dict(model.named_parameters())
    kept = {id(p) for group in old for p in group["params"]} & set(map(id, now.values()))
    gained = set() if optimizer is None else _GAINED.get(optimizer, set())

    def replace(parameter: nn.Parameter) -> nn.Parameter | None:
        name = names.get(id(parameter))
        if id(parameter) in kept or id(parameter) in gained or name is None:
            return parameter  # the last: of a network that the learner does not train
        # Else it is gone, or the user has added it himself.
        return now[name] if name in now and id(now[name]) not in kept else None

    for group in groups:
        _map_parameters(group, replace)
    try:
        yield
    except BaseException:
        for group, lists in zip(groups, old, strict=True):
            group.update(lists)
        raise


def _check_owns(missing: Iterable[str]) -> None:
    names = list(missing)
    if names:
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        raise BadInput(
            f"The optimizer lacks parameters of the model ({', '.join(names[:_MAX_NAMES])}{more}): "
            "build it from model.parameters(), or freeze the others before: for p in "
            "set(model.parameters()) - {p for g in optimizer.param_groups for p in g['params']}: "
            "p.requires_grad_(False)"
        )


def _remove_gained(optimizer: Optimizer) -> None:
    """Remove what an earlier learner has added."""
    older = _GAINED.pop(optimizer, set())

    def keep(parameter: nn.Parameter) -> nn.Parameter | None:
        return None if id(parameter) in older else parameter

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in older:
                optimizer.state.pop(parameter, None)
        _map_parameters(group, keep)


# --- groups ---------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """What policies tell apart: matrices, vectors, biases, the weights of norms.

    Attributes:
        is_vector: whether it has one dimension or none.
        name: in its module, such as "bias".
        owner: the type of its module.
    """

    is_vector: bool
    name: str
    owner: type[nn.Module]


def _make_choice(
    optimizer: Optimizer, model: nn.Module, wiring: Wiring
) -> Callable[[nn.Parameter, int], dict[str, Any]]:
    """A function of a parameter and the layer where it stands, which returns its group."""
    group_of = {
        id(parameter): number
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
    kinds = {
        id(parameter): _Kind(parameter.ndim <= 1, name, type(owner))
        for module in (model, wiring.heads, wiring.encoders)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
    }
    named = {name: id(parameter) for name, parameter in model.named_parameters()}
    # Few, however large the model: the layers' kinds of parameters.
    known = dict.fromkeys(
        (layer, kinds[named[name]], group_of[named[name]])
        for layer, names in enumerate(wiring.layers.parameters)
        for name in names
        if named.get(name) in group_of
    )

    def choose(parameter: nn.Parameter, layer: int) -> dict[str, Any]:
        kind = kinds[id(parameter)]

        def distance(place: tuple[int, _Kind, int]) -> tuple[bool, int, int]:
            there, like, _ = place
            unlike = (like.name != kind.name) + (like.owner is not kind.owner)
            return like.is_vector is not kind.is_vector, abs(there - layer), unlike

        return optimizer.param_groups[min(known, key=distance)[2]]

    return choose


def _lists_of(group: dict[str, Any]) -> list[str]:
    """The entries of a group that have one element for each parameter."""
    return [key for key in PARAMETER_LISTS if key in group]


def _map_parameters(
    group: dict[str, Any], replace: Callable[[nn.Parameter], nn.Parameter | None]
) -> None:
    """Replace the parameters of a group, or drop them where `replace` returns None."""
    new = [replace(parameter) for parameter in group["params"]]
    for key in _lists_of(group):
        entries = zip(new if key == "params" else group[key], new, strict=True)
        group[key] = [entry for entry, parameter in entries if parameter is not None]
