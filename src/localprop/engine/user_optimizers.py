"""Factories of optimizers, one call for each segment and each loss, and what they must return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from localprop.errors import BadInput, check
from localprop.schedule.schedule import Action, Op
from localprop.schedule.wiring import Wiring

# Of a list of parameters; or of (name, parameter) pairs, if its argument is called so.
OptimizerFactory = Callable[[list[Any]], Optimizer]
Named = list[tuple[str, nn.Parameter]]

_HINT = "write optimizer=lambda params: torch.optim.SGD(params, lr=0.1)."
_NAMED = ("named", "named_parameters", "named_params")


def find_owned_parameters(
    model: nn.Module, wiring: Wiring, segments: range | None = None
) -> dict[Action, Named]:
    """The parameters that each step updates, of a segment (S) or a loss (H), with their names.

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
    names = {
        id(parameter): name
        for prefix, module in (("heads", wiring.heads), ("encoders", wiring.encoders), ("", model))
        for name, parameter in module.named_parameters(prefix)
    }
    return {
        step: [(names[id(parameter)], parameter) for parameter in parameters]
        for step, parameters in owned.items()
        if parameters
    }


def make_optimizers(
    optimizer: OptimizerFactory | Optimizer, owned: dict[Action, Named]
) -> dict[Action, Optimizer]:
    """Make an optimizer for each step; none if an existing one serves them all."""
    if isinstance(optimizer, Optimizer):
        return {}
    by_name = takes_names(optimizer)
    made = {}
    for step, named in owned.items():
        parameters = [parameter for _, parameter in named]
        given: list[Any] = list(named) if by_name else parameters
        made[step] = check_optimizer(optimizer(given), parameters)
    return made


def takes_names(factory: OptimizerFactory) -> bool:
    """Whether a factory wants (name, parameter) pairs: by the name of its first argument.

    Example:
        >>> takes_names(lambda named: torch.optim.SGD(named, lr=0.1))
        True
        >>> takes_names(torch.optim.SGD)
        False
    """
    try:
        arguments = list(inspect.signature(factory).parameters)
    except ValueError:  # a function of C++
        return False
    return arguments[:1] != [] and arguments[0] in _NAMED


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
    check(find_closure_problems(made))
    owned = {id(p) for group in made.param_groups for p in group["params"]}
    wanted = {id(p) for p in parameters}
    if owned != wanted:
        raise BadInput(
            f"The optimizer factory was given {len(wanted)} parameters, but its optimizer owns "
            f"{len(owned & wanted)} of them and {len(owned - wanted)} others: it must own just "
            f"those it is given; {_HINT}"
        )
    return made


def find_closure_problems(optimizer: Optimizer) -> Iterator[str]:
    """Whether an optimizer runs the model again in its step."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        yield (
            f"{type(optimizer).__name__} runs the model again in its step, which cannot be cut: "
            "use another optimizer."
        )
