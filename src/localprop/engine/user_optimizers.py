"""Optimizers as users give them: a factory, or one that exists."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer

from localprop.errors import BadInput
from localprop.schedule.schedule import Action, Op
from localprop.schedule.wiring import Wiring

OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]

_HINT = "write optimizer=lambda params: torch.optim.SGD(params, lr=0.1)."
_LOG = logging.getLogger("localprop")

# The parameters that an existing optimizer has gained. An attribute of the optimizer would not do:
# it would be saved among the hyperparameters.
_GAINED: WeakKeyDictionary[Optimizer, set[int]] = WeakKeyDictionary()


def find_owned_parameters(
    model: nn.Module, wiring: Wiring, segments: range | None = None
) -> dict[Action, list[nn.Parameter]]:
    """The parameters that each step updates, of a segment (S) or a loss (H).

    Args:
        model: the network.
        wiring: its segments and objectives.
        segments: those that run here; by default all.
    """
    here = range(len(wiring.segments)) if segments is None else segments
    named = dict(model.named_parameters())
    owned = {Action(Op.S, s): wiring.parameters_trained_by(named, s, s) for s in here}
    for objective in wiring.objectives:
        if objective.segment in here:
            owned[Action(Op.H, *objective.key)] = list(wiring.head(objective).parameters())
    return {step: parameters for step, parameters in owned.items() if parameters}


def make_optimizers(
    optimizer: OptimizerFactory | Optimizer, owned: dict[Action, list[nn.Parameter]]
) -> dict[Action, Optimizer]:
    """Make an optimizer for each step; none if an existing one serves them all."""
    if isinstance(optimizer, Optimizer):
        return {}
    return {step: check_optimizer(optimizer(own), own) for step, own in owned.items()}


def check_optimizer(made: Any, parameters: list[nn.Parameter]) -> Optimizer:
    """Check that a factory made an optimizer of just the parameters that it was given.

    Raises:
        BadInput: it did not.
    """
    name = type(made).__name__
    if not isinstance(made, Optimizer):
        raise BadInput(
            f"The optimizer factory returned a {name}, but must return an optimizer: {_HINT}"
        )
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise BadInput(
            f"{name} runs the model again in its step, which cannot be cut: use another optimizer."
        )
    owned = {id(p) for group in made.param_groups for p in group["params"]}
    wanted = {id(p) for p in parameters}
    if owned != wanted:
        raise BadInput(
            f"The optimizer factory was given {len(wanted)} parameters, but its optimizer owns "
            f"{len(owned & wanted)} of them and {len(owned - wanted)} others: it must own just "
            f"those it is given; {_HINT}"
        )
    return made


def extend_optimizer(
    optimizer: Optimizer,
    model: nn.Module,
    trained: Iterable[nn.Parameter],
    unreached: Collection[str] = (),
) -> None:
    """Add the parameters of heads and encoders to an existing optimizer, as one more group.

    The group replaces the one that an earlier learner has added.

    Args:
        optimizer: may also own parameters that are not trained.
        model: the network.
        trained: all parameters that are trained, of network, heads and encoders.
        unreached: the names of parameters that may be missing, since no gradient reaches them.

    Raises:
        BadInput: the optimizer lacks parameters of the model that are trained.
    """
    trained = list(trained)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lacking = {id(parameter) for parameter in trained} - known
    missing = [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in lacking and name not in unreached
    ]
    if missing:
        raise BadInput(
            f"The optimizer lacks parameters of the model ({', '.join(missing[:5])}): build it "
            "from model.parameters()."
        )
    _remove_gained(optimizer)
    of_model = {id(p) for p in model.parameters()}
    gained = [p for p in trained if id(p) not in of_model]
    if gained:
        optimizer.add_param_group({"params": gained})
        _GAINED[optimizer] = set(map(id, gained))
        count = sum(parameter.numel() for parameter in gained)
        _LOG.info("the optimizer has gained a group of %d parameters, of heads and encoders", count)


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
    old = [list(group["params"]) for group in groups]
    names = {id(parameter): name for name, parameter in before}
    now = dict(model.named_parameters())
    kept = {id(p) for group in old for p in group} & set(map(id, now.values()))
    gained = set() if optimizer is None else _GAINED.get(optimizer, set())
    for group in groups:
        new: list[nn.Parameter] = []
        for parameter in group["params"]:
            name = names.get(id(parameter))
            if id(parameter) in kept or id(parameter) in gained or name is None:
                new.append(parameter)  # the last: of a network that the learner does not train
            elif name in now and id(now[name]) not in kept:  # else the user has added it himself
                new.append(now[name])
        group["params"] = new
    try:
        yield
    except BaseException:
        for group, parameters in zip(groups, old, strict=True):
            group["params"] = parameters
        raise


def _remove_gained(optimizer: Optimizer) -> None:
    """Remove the group that an earlier learner has added."""
    older = _GAINED.pop(optimizer, set())
    groups = [g for g in optimizer.param_groups if older & set(map(id, g["params"]))]
    for group in groups:
        # By identity: `remove` would compare groups by value, and so tensors of other shapes.
        optimizer.param_groups[:] = [g for g in optimizer.param_groups if g is not group]
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)
